"""The pages of the server: a chat at `/` and the planner at `/planner`."""

from __future__ import annotations

from fastapi import FastAPI

from step3.server.page.assets import add_assets
from step3.server.page.planner import add_planner


def add_pages(app: FastAPI) -> None:
    """Serves the pages, what they load, and what the planner's page asks for."""
    add_assets(app)
    add_planner(app)
