"""A peer of Belong: memberships in PostgreSQL, as somebody would write them with Django REST."""
