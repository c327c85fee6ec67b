package chat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"groupferry/internal/redact"
)

// maxText bounds a text of the server or the network that is kept, in bytes.
const maxText = 256

// An Error is a call that the API did not accept, or that got no response. One of Code, Status and Cause is set.
type Error struct {
	Command Command
	Code    int    // as the API responded; 0 if its response had none
	Info    string // the server's text for the code, or how the body begins that came with a status; cleaned and cut, for people
	Status  int    // HTTP status other than 200
	Cause   error  // no readable response: the network, a timeout, an end of the context, a body cut off or undecodable
}

// What became of a response that is none; an [Error]'s Cause wraps one of these, a context's error or a syscall.Errno.
var (
	errNoResponse  = os.ErrDeadlineExceeded
	errReset       = syscall.ECONNRESET
	errRefused     = syscall.ECONNREFUSED
	errCutOff      = errors.New("the response was cut off")
	errUndecodable = errors.New("the response is undecodable")
)

// The reasons of [Error.Reason] that are no code and no HTTP status.
const (
	ReasonTimeout     = "timeout"
	ReasonRefused     = "refused"
	ReasonReset       = "reset"
	ReasonCutOff      = "cut-off"
	ReasonUndecodable = "undecodable"
	ReasonCancelled   = "cancelled"
	ReasonNetwork     = "network"
	ReasonUnsent      = "unsent" // nothing of it reached the API
)

// Reasons lists the reasons of [Error.Reason] that are no code and no HTTP status.
func Reasons() []string {
	return []string{
		ReasonTimeout, ReasonRefused, ReasonReset, ReasonCutOff, ReasonUndecodable, ReasonCancelled, ReasonNetwork, ReasonUnsent,
	}
}

func (e *Error) Error() string {
	switch {
	case e.Code != 0 && e.Info != "":
		return fmt.Sprintf("%s: %d %s: %s", e.Command, e.Code, Meaning(e.Code), e.Info)
	case e.Code != 0:
		return fmt.Sprintf("%s: %d %s", e.Command, e.Code, Meaning(e.Code))
	case e.Status != 0 && e.Info != "":
		return fmt.Sprintf("%s: HTTP status %d: %s", e.Command, e.Status, e.Info)
	case e.Status != 0:
		return fmt.Sprintf("%s: HTTP status %d", e.Command, e.Status)
	case e.Cause != nil:
		return fmt.Sprintf("%s: %v", e.Command, e.Cause)
	}
	return string(e.Command) + ": no response"
}

// Unwrap gives the cause, so that errors.Is finds context.Canceled in a call whose context ended.
func (e *Error) Unwrap() error { return e.Cause }

// Class says what to do about the error. A call without a code is of class [Retry], but for an HTTP status that trying
// again cannot be expected to change. Of these 401, 403, 404, 407 and 451 come from something in between that refuses
// every call, or from another server than the API's: [HaltRepeated]. Any other 3xx or 4xx but 408 and 429 is [Unknown].
func (e *Error) Class() Class {
	switch {
	case e.Code != 0:
		return ClassOf(e.Code)
	case e.Status == 408, e.Status == 429:
		return Retry
	case e.Status == 401, e.Status == 403, e.Status == 404, e.Status == 407, e.Status == 451:
		return HaltRepeated
	case 300 <= e.Status && e.Status < 500:
		return Unknown
	}
	return Retry
}

// Transport tells whether the call failed on the way and says nothing about the request: refused, reset, timed out,
// an HTTP status of class [Retry], or a response that cannot be read. A call that its own caller cancelled, or that was
// not sent, is not among them, for it says nothing about the way either.
func (e *Error) Transport() bool {
	return e.Code == 0 && e.Class() == Retry && !errors.Is(e.Cause, context.Canceled) && !e.Unsent()
}

// Unsent tells whether no byte of the request was written, because its permit had ended or its caller had given up: the
// API cannot have seen it, and the network had no part in it.
func (e *Error) Unsent() bool { return errors.Is(e.Cause, errUnsent) }

// NotOffered tells whether the command may not be there: HTTP 404, which can also come from something in between, or
// code 60009, which is the API's own word.
func (e *Error) NotOffered() bool {
	return e.Code == CodeNotOffered || e.Code == 0 && e.Status == 404
}

// Remedy says what an operator does about an error, and is empty where nothing is known.
func (e *Error) Remedy() string {
	switch {
	case e.NotOffered():
		return Remedy(CodeNotOffered)
	case e.Status != 0 && e.Class() == HaltRepeated:
		return "this is no response of the API: check the API URL, and the proxy or firewall on the way to it"
	}
	return Remedy(e.Code)
}

// Reason is a short stable word for results and metrics: the code in decimal, "http-502" for a status, or one of
// [Reasons].
func (e *Error) Reason() string {
	switch {
	case e.Code != 0:
		return strconv.Itoa(e.Code)
	case e.Status != 0:
		return "http-" + strconv.Itoa(e.Status)
	case e.Unsent():
		return ReasonUnsent
	case errors.Is(e.Cause, context.Canceled):
		return ReasonCancelled
	case errors.Is(e.Cause, context.DeadlineExceeded), errors.Is(e.Cause, errNoResponse):
		return ReasonTimeout
	case errors.Is(e.Cause, errRefused):
		return ReasonRefused
	case errors.Is(e.Cause, errReset):
		return ReasonReset
	case errors.Is(e.Cause, errCutOff):
		return ReasonCutOff
	case errors.Is(e.Cause, errUndecodable):
		return ReasonUndecodable
	}
	return ReasonNetwork
}

// A cause keeps what kind of failure an error of the network was, and its text. The error itself is let go: what it
// wraps can hold the URL of the call, or what the server sent.
type cause struct {
	text string
	kind error // nil: no more is known than the text
}

func (c *cause) Error() string { return c.text }

func (c *cause) Unwrap() error { return c.kind }

// networkCause tells the kinds of network errors apart that [Error.Reason] has words for.
func networkCause(err error, clean func(string) string) error {
	var timeout net.Error
	var errno syscall.Errno
	c := &cause{text: clean(err.Error())}
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		c.kind = errNoResponse
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		c.kind = errReset
	case errors.As(err, &errno):
		c.kind = errno
	case strings.Contains(c.text, "server closed idle connection"): // net/http does not export this error
		c.kind = errReset
	}
	return c
}

// cleanText makes a text of the server or the network fit to be kept and shown: no secret, no login of a URL (a proxy
// can have one), no control characters or direction marks, at most maxText bytes. The secrets are taken out before the cut, which could leave half of one.
func cleanText(s string, secrets ...string) string {
	if s == "" {
		return ""
	}
	s = redact.Logins(redact.UserSigs(s, secrets...))
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	s = strings.TrimSpace(s)
	if len(s) <= maxText {
		return s
	}
	cut := maxText - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
