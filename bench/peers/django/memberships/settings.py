"""Settings: what an API without sessions, users or pages needs, and nothing else."""

from __future__ import annotations

import os

SECRET_KEY = os.environ["PEER_TOKEN"]
ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["PEER_POSTGRES"],
        "NAME": "postgres",
        "USER": "postgres",
        # A connection of each thread, kept for good: opening one costs more than most requests.
        "CONN_MAX_AGE": None,
        # Statements that come again are planned once.
        "OPTIONS": {"prepare_threshold": 5, "server_side_binding": True},
    }
}
INSTALLED_APPS = ["memberships"]
# It says how long an answer is: else gunicorn sends it in chunks, which costs more.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "memberships.urls"
WSGI_APPLICATION = "memberships.wsgi.application"
USE_TZ = True
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 1024 * 1024

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["memberships.tokens.BearerToken"],
    "DEFAULT_PERMISSION_CLASSES": ["memberships.tokens.ForTheApplication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "UNAUTHENTICATED_USER": None,
}
