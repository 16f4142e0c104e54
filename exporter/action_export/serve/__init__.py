"""The embedded server: a tritonserver on a repository that leaves nothing behind.

`with serve(repo) as server:` gives its address as `server.grpc_url`.
"""

from action_export.serve.installation import find_installation
from action_export.serve.options import ServerOptions
from action_export.serve.readiness import ServedModel
from action_export.serve.server import Server, serve

__all__ = ["ServedModel", "Server", "ServerOptions", "find_installation", "serve"]
