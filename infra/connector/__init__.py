"""What vLLM loads into itself: this folder alone goes on its PYTHONPATH, and nothing here imports anything of ours."""
