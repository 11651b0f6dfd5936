"""Engines that serve a draft, asked as their users ask them: one client, loads, and what the numbers say."""
