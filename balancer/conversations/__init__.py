"""Stored chats: sessions, their turns, and what they are bound to, kept in SQLite or PostgreSQL.

| module | what it knows |
|---|---|
| `base` | the records and the errors that surfaces see; no database |
| `opening` | when and by which driver the database is opened: at the first use, and not before anything imports SQLAlchemy |
| `store` | what can be done with sessions and turns, in statements that both databases take |
| `schema`, `migrations`, `rows` | the tables, how they came to be, and how records stand in them |
| `database`, `sqlite`, `postgres` | how a transaction is run there, and what its failures mean |
"""
