"""Valkey and PostgreSQL from their wheels, as child processes that die with their parent."""

from flashsale.embedded.postgres import DATABASE, PostgresServer
from flashsale.embedded.server import ServerDied, ServerFault
from flashsale.embedded.valkey import REPAIRS_MAX, ValkeyServer

__all__ = ["DATABASE", "REPAIRS_MAX", "PostgresServer", "ServerDied", "ServerFault", "ValkeyServer"]
