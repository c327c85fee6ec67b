package broker

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	// ErrUnreachable is wrapped by every error that says: NATS did not answer. The same call may work later.
	ErrUnreachable = errors.New("NATS is out of reach")

	// ErrTooOld is wrapped by the error of an [Open] that met a server without atomic publishing.
	ErrTooOld = errors.New("too old: 2.12 or newer is needed")

	// ErrNoJetStream is wrapped by errors about a server, or an account, without JetStream.
	ErrNoJetStream = errors.New("JetStream is not enabled")

	// ErrNoData is wrapped by the errors of a Conn with JoinOnly where no import was ever begun.
	ErrNoData = errors.New("no groupferry data")

	// ErrSchema is wrapped by errors about a stream that another version of groupferry, or something else, made.
	ErrSchema = errors.New("choose another namespace, or use the version of groupferry that made it")

	// ErrNotFound is wrapped by the error about a message that is not on its stream.
	ErrNotFound = errors.New("no such message")

	// ErrDenied is wrapped by errors about a request, or the answer to one, that the NATS account is not allowed to send.
	ErrDenied = errors.New("NATS denies it")
)

// A ConfigError says which field of a [Config] cannot be used, and why.
type ConfigError struct {
	Field string
	Err   error
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *ConfigError) Unwrap() error { return e.Err }

func configErrorf(field, format string, args ...any) error {
	return &ConfigError{field, fmt.Errorf(format, args...)}
}

// An AuthError says that a server does not let a user in.
type AuthError struct {
	Where string // the server
	User  string // who asked, for people; no secret
	Err   error  // what the server said
}

func (e *AuthError) Error() string {
	return fmt.Sprintf("%s refuses %s: %v", e.Where, e.User, e.Err)
}

func (e *AuthError) Unwrap() error { return e.Err }

// A DiskError says why the embedded server cannot write its data: the disk is full or broken, or must not be written
// to. What it said it has written is there. The server writes again when it is started again.
type DiskError struct {
	Dir string // the data directory
	Err error
}

func (e *DiskError) Error() string {
	return fmt.Sprintf("the embedded server in %s cannot write its data: %v", shown(e.Dir), e.Err)
}

func (e *DiskError) Unwrap() error { return e.Err }

// A DamagedError says that stored data is damaged: what was found, and what a person can do about it.
type DamagedError struct {
	Path   string // the file or directory, or the stream; empty if none can be named
	What   string // what is wrong with it
	Remedy string // what to do
}

func (e *DamagedError) Error() string {
	s := "stored data is damaged: "
	if e.Path != "" {
		s += e.Path + ": "
	}
	s += e.What
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// saysWhere tells the errors about stored data, which name the data directory by themselves.
func saysWhere(err error) bool {
	_, disk := errors.AsType[*DiskError](err)
	_, damaged := errors.AsType[*DamagedError](err)
	return disk || damaged
}

// diskFaults are what the operating system says then.
var diskFaults = []error{
	syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EFBIG, fs.ErrPermission,
}

// diskFault finds one of them in an error, or returns nil.
func diskFault(err error) error {
	for _, fault := range diskFaults {
		if errors.Is(err, fault) {
			return fault
		}
	}
	return nil
}

// Fault turns what came back from the server into the error of an exported method. Trouble on the way comes out as
// ErrUnreachable, the end of the caller's context as that, and an answer that says no as itself. A nil err stays nil.
func (c *Conn) Fault(ctx context.Context, doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	case errors.Is(err, ErrUnreachable):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.Is(err, context.Canceled): // not by the caller: see Within
		return fmt.Errorf("%s: %w: %s: %w", doing, ErrUnreachable, c.where, nats.ErrDisconnected)
	case Unreachable(err):
		return fmt.Errorf("%s: %w: %s: %w", doing, ErrUnreachable, c.where, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Unreachable tells trouble on the way from an answer. A context that ended is trouble too: ask about your own one first.
func Unreachable(err error) bool {
	if errors.Is(err, ErrDenied) || saysWhere(err) { // a full disk looks like a net.Error
		return false
	}
	for _, target := range []error{
		ErrUnreachable,
		context.DeadlineExceeded,
		context.Canceled,
		io.EOF,
		nats.ErrTimeout,
		nats.ErrNoResponders,
		nats.ErrNoServers,
		nats.ErrDisconnected,
		nats.ErrConnectionClosed,
		nats.ErrConnectionDraining,
		nats.ErrConnectionReconnecting,
		nats.ErrReconnectBufExceeded,
		nats.ErrStaleConnection,
		jetstream.ErrConnectionClosed,
		jetstream.ErrNoStreamResponse,
		jetstream.ErrNoHeartbeat,
		errNoServer,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	if api := APIError(err); api != nil {
		return api.Code == 503 && api.ErrorCode != CodeStoreFailed
	}
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// CodeStoreFailed is what the server answers when it cannot write: a broken or full disk. It comes as a 503, and does not
// pass by itself.
const CodeStoreFailed jetstream.ErrorCode = 10077

// APIError gives what the server itself answered, or nil when err is none of its answers.
func APIError(err error) *jetstream.APIError {
	if e, ok := errors.AsType[jetstream.JetStreamError](err); ok {
		return e.APIError()
	}
	// The library watches a bucket by its older half, whose errors are of another type.
	if e, ok := errors.AsType[nats.JetStreamError](err); ok && e.APIError() != nil {
		old := e.APIError()
		return &jetstream.APIError{
			Code: old.Code, ErrorCode: jetstream.ErrorCode(old.ErrorCode), Description: old.Description,
		}
	}
	return nil
}

// WithoutJetStream tells whether the server, or the account, says that it has none.
func WithoutJetStream(err error) bool {
	api := APIError(err)
	return api != nil && (api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabled ||
		api.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabledForAccount)
}

// LostRace tells whether a write was refused because the stream, or the subject, had moved on from where the write
// expected it to end. A cluster has a code of its own for it.
func LostRace(err error) bool {
	api := APIError(err)
	return api != nil && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// connectError tells a server out of reach from a login that it refuses, and from a configuration that nothing can be
// reached with. It drops the URL that an error of the latter kind repeats.
func (c *Conn) connectError(err error) error {
	field := "URL"
	if c.cfg.URL == "" {
		field = "Context"
	}
	if file, ok := errors.AsType[*fs.PathError](err); ok { // of credentials, which the library takes for a server that is not there
		return &ConfigError{field, file}
	}
	for _, refused := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired} {
		if errors.Is(err, refused) {
			return &AuthError{Where: c.where, User: c.cfg.user(), Err: refused}
		}
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return &ConfigError{field, errors.New("the server's address is not a URL")}
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return &ConfigError{field, fmt.Errorf("%s: %w; name the file with the authority's certificate in SSL_CERT_FILE, "+
			"or as ca in a NATS context", c.where, err)}
	}
	if Unreachable(err) {
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, c.where, err)
	}
	if field == "Context" { // what it says cannot be used
		return &ConfigError{field, err}
	}
	return fmt.Errorf("connect to %s: %w", c.where, err)
}
