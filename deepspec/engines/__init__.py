"""Engines that a run asks: how many requests each of them gets, and whose fault it is that there is no answer."""
