"""Tokens on real servers: demanded by an intention, verified, and their claims handed on."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mesh_middleware.dev import DevAgent

from ..support.servers import until
from .callers import Identity, outsider_context
from .conftest import Serve
from .test_spellings import Served

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz


async def mine(request):
    claims = {name: dict(c) for name, c in request.state.mesh.claims.items()}
    return JSONResponse({"claims": claims, "header": request.headers.getlist("x-claims")})


app = Starlette(routes=[Route("/mine", mine), Route("/open", mine)])
app.add_middleware(MeshAuthz)
"""

FASTAPI = """
from fastapi import FastAPI, Request

from mesh_middleware import MeshAuthz

app = FastAPI()
app.add_middleware(MeshAuthz)


@app.get("/mine")
@app.get("/open")
async def mine(request: Request):
    claims = {name: dict(c) for name, c in request.state.mesh.claims.items()}
    return {"claims": claims, "header": request.headers.getlist("x-claims")}
"""

FLASK = """
from flask import Flask, request

from mesh_middleware import MeshNative, mesh_caller

app = Flask(__name__)
MeshNative(app)


@app.get("/mine")
@app.get("/open")
def mine():
    claims = {name: dict(c) for name, c in mesh_caller.claims.items()}
    return {"claims": claims, "header": request.headers.getlist("x-claims")}
"""

APPS = {"starlette": STARLETTE, "fastapi": FASTAPI, "flask": FLASK}


class Issuer:
    """Signs tokens with a key made now."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def entry(self) -> dict[str, Any]:
        public: Any = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        jwks = json.dumps({"keys": [{**public, "kid": "1", "use": "sig", "alg": "RS256"}]})
        keys = {"Local": {"JWKS": base64.b64encode(jwks.encode()).decode()}}
        return {
            "Kind": "jwt-provider",
            "Name": "okta",
            "Issuer": "me",
            "JSONWebKeySet": keys,
            "Forwarding": {"HeaderName": "X-Claims"},
        }

    def token(self, **claims: Any) -> bytes:
        body = {"iss": "me", "sub": "ann", "exp": int(time.time()) + 600} | claims
        return jwt.encode(body, self.key, "RS256", headers={"kid": "1"}).encode()


@pytest.mark.parametrize("framework", sorted(APPS))
def test_claims_of_a_verified_token_reach_the_handler(
    agent: DevAgent, serve: Serve, framework: str
) -> None:
    """Neither identity nor token is enough alone; with both the handler sees the claims."""
    issuer = Issuer()
    agent.set_protocol("tax", "http")
    agent.put_entry(issuer.entry())
    wanted = [{"Path": ["perms", "role"], "Value": "clerk"}]
    demand = {"Providers": [{"Name": "okta", "VerifyClaims": wanted}]}
    permissions = [
        {"Action": "allow", "HTTP": {"PathExact": "/mine"}, "JWT": demand},
        {"Action": "allow", "HTTP": {"PathExact": "/open"}},
        {"Action": "deny", "HTTP": {"PathPrefix": "/"}},
    ]
    sources = [{"Name": "invoice", "Permissions": permissions}, {"Name": "*", "Action": "deny"}]
    agent.put_entry({"Kind": "service-intentions", "Name": "tax", "Sources": sources})
    server = serve(APPS[framework])
    contexts = {
        (name, "http/1.1"): outsider_context(Identity.of(*agent.issue(name)).pem)
        for name in ("invoice", "order")
    }
    served = Served(server.port(), contexts)

    def mine(caller: str, path: bytes, token: bytes | None = None) -> bytes:
        # Whoever believes the header must not find there what a caller wrote.
        lines = [b"X-Claims: forged", b"x_claims: forged"]
        lines += [] if token is None else [b"authorization: Bearer " + token]
        return served.send(caller, b"GET", path, *lines)

    good = issuer.token(perms={"role": "clerk"})
    until(lambda: mine("invoice", b"/mine", good).startswith(b"HTTP/1.1 200 "), "the keys")
    seen = json.loads(mine("invoice", b"/mine", good).partition(b"\r\n\r\n")[2])
    claims = jwt.decode(good, options={"verify_signature": False})
    assert seen["claims"] == {"okta": claims}
    [header] = seen["header"]
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == claims
    open_one = mine("invoice", b"/open", good)
    nothing = {"claims": {}, "header": []}
    assert json.loads(open_one.partition(b"\r\n\r\n")[2]) == nothing, "nobody demanded it"
    refused = [
        mine("invoice", b"/mine"),
        mine("invoice", b"/mine", issuer.token(perms={"role": "boss"})),
        mine("invoice", b"/mine", issuer.token(perms={"role": "clerk"}, exp=1)),
        mine("invoice", b"/mine", Issuer().token(perms={"role": "clerk"})),
        mine("order", b"/mine", good),
    ]
    assert [answer[9:12] for answer in refused] == [b"403"] * 5
    told = "jwt_missing", "jwt_claims", "jwt_invalid", "intention_deny"
    for reason in told:
        server.wait_output(f"denied spiffe://.*: {reason}")
    assert good.decode().split(".")[2] not in server.output, "no token in the log"
