"""Engines over loopback that answer, give states or stream, and the stages that ask them."""
