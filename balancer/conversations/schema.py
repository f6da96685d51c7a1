"""The tables, as statements name them. What makes and changes them stands in `migrations`; a test compares the two.

Times are microseconds since 1970 (UTC), ids of rows count up and are never given again. `turns` of a session is the sequence
of its last turn and with that their number: turns go only all at once. Raising it is what takes the row's lock.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, MetaData, Table, Text

metadata = MetaData()
Number = BigInteger().with_variant(Integer, "sqlite")

sessions = Table(
    "chat_sessions",
    metadata,
    Column("number", Number, primary_key=True),
    Column("edition", BigInteger, nullable=False),
    Column("client", Text, nullable=False),
    Column("surface", Text, nullable=False),
    Column("folded", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("title", Text),
    Column("is_active", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("turns", BigInteger, nullable=False),
    Column("user_id", Text),
    Column("conversation", Text),
    Column("upstream", Text),
    Column("model", Text),
    Column("owner", Text),
    Column("remote", Text),
)

messages = Table(
    "chat_messages",
    metadata,
    Column("session", Number, ForeignKey("chat_sessions.number", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("metadata_info", Text),
    Column("created_at", BigInteger, nullable=False),
)
