"""What a target reads: conversations rendered by its chat template, held against what it answered."""
