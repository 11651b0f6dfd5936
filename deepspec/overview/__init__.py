"""What people see of what is published: a page for any artifact, several drafts side by side, the story of a run."""
