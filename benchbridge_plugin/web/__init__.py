"""The routes under /api/bridge: `blueprint.create_blueprint` of a bridge that works, `broken.create_broken_blueprint` of one that cannot."""
