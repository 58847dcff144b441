"""The same application in the mesh."""

from flask_app import app  # type: ignore[import-not-found]

from mesh_middleware import MeshNative

MeshNative(app)
