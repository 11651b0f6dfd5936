"""Conversations: messages, tools, reasoning, how an answer ended, and the rows that hold them."""
