// Package broker connects to NATS: to an external server, or to one that is embedded in this process. It knows nothing of
// jobs and imports.
//
//	process A                                     process B (a second terminal)
//	┌──────────────────────────────┐              ┌─────────────┐
//	│ Conn ──► embedded server     │◄── loopback, │ Conn        │
//	└────────────────┬─────────────┘    token     └──────┬──────┘
//	                 ▼ holds the lock                    ┊ takes over when A ends
//	      data directory: lock  server.json  store.json  jetstream/
//
// # The embedded server
//
// Whoever gets the lock of the data directory runs the server there, and writes server.json, readable by its owner alone:
// the port on loopback, and a token that is random and new at each start. The others connect to it. When it ends, one of
// them gets the lock in its attempt to reconnect, and runs the server from then on; see [Conn.Ask] for requests that are
// made at that time. Each write is synced to the disk before it is acknowledged. A disk that cannot be written to is
// reported as a [*DiskError]. Before the server starts, the store is searched for damage: [*DamagedError]. What that search
// finds, and what only a reader can find, is written in damage.go.
//
// # Reading what decides
//
// On a cluster a replica can be behind. [Conn.LastMsg], [Conn.MsgAt], [Conn.NextMsg], [Conn.StreamState] and the lease ask
// the leader of the stream, which has what it acknowledged.
//
// # Errors
//
// [Conn.Fault] sorts what a request can end with: trouble on the way wraps [ErrUnreachable] and may pass, an answer that
// says no comes out as it is, and the end of the caller's context as that. No error, log line or value of this package
// holds a password or a token.
//
// # Failpoints
//
// A build with the tag failpoint can be told to die, or to be held, at each [Failpoint] and [FailInside] by name.
package broker
