"""The account of a key: constants from the settings. Clients ask for it as a cheap way to test a key."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from server.api.deps import NEEDS_KEY, SettingsDep
from server.api.responses import described

router = APIRouter(tags=["account"], dependencies=[NEEDS_KEY])


class Credits(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    credits: int
    free_credits: int = Field(alias="free-credits")


@router.get("/v1/get-user-credits", responses={200: {"model": Credits}, **described(401, 500)})
async def user_credits(settings: SettingsDep) -> JSONResponse:
    """Two constants, for a key that is known."""
    return JSONResponse({"credits": settings.credits, "free-credits": settings.credits})
