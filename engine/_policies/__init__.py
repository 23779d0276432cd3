"""How a predictor is consumed: `create` and `stream`, from sync code and from asyncio."""
