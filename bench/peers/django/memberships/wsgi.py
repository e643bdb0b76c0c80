"""What gunicorn serves."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
