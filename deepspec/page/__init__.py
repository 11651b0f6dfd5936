"""What people read: pages, tables, reports."""
