"""What a plan will cost, before anything is spent: from sizes and counts to bytes, hours and money."""
