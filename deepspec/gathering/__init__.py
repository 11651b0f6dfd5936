"""States of many samples, gathered from engines: under a dispatcher, in the order of training, or with answers."""
