"""The jobs."""

from api.dashboard.desk import Pages

PAGES: Pages = {}
ACTIONS: Pages = {}
