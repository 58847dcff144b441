"""The same application in the mesh."""

from starlette_app import app  # type: ignore[import-not-found]

from mesh_middleware import MeshAuthz

app.add_middleware(MeshAuthz)
