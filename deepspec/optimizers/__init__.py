"""What steps the weights: AdamW and Muon over shares of the ranks, and the rate of each step."""
