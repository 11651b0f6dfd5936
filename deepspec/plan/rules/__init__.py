"""What a plan must hold against what is known, one file for each thing that it is held against."""
