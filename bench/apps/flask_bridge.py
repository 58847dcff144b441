"""The measured application over the package's own WSGI bridge, without the mesh."""

from flask_app import app as flask_app

from mesh_middleware.inbound.wsgi_bridge import WsgiBridge

app = WsgiBridge(flask_app)
