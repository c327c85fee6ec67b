package chatsim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"groupferry/internal/chat"
)

// The kinds of faults without a code. "Applied" means that the groups change although the caller cannot know it.
const (
	Reset   = "reset"   // the connection is reset; not applied
	Hang    = "hang"    // no response until the caller leaves, or for 60 s; not applied
	Lost    = "lost"    // applied, then the connection is closed without a response
	Cut     = "cut"     // applied, then half of the response
	Garbage = "garbage" // applied, then a response that is not JSON
	Late    = "late"    // the connection is closed without a response; applied only after [Config.Late]
)

const (
	httpKind = "http-" // followed by an HTTP status: http-502; not applied
	itemKind = "item-" // followed by a code: item-51007; drawn for each conversation
)

// A Fault is one way in which correct calls fail. Calls that are rejected for another reason (throttled, not signed,
// over a limit) do not reach the faults and are not counted by them.
type Fault struct {
	Command chat.Command // only calls of this command are struck and counted; "" for all commands

	Kind  string  // a code as "50004", "http-502", "item-51007", or one of the names above
	Share float64 // of the calls, up to 1; for an item fault, of the conversations; 0 means 1
	After int     // calls that pass before the fault begins
	For   int     // calls that it lasts, struck or not; 0: to the end
}

// ParseFault reads the text form of a fault: [COMMAND/]KIND[:SHARE][@AFTER][+FOR]. The share is a number or a
// percentage. "lost:5%" strikes one call in twenty; "51013:1@50" every one from the 51st on; "reset@10+2" the 11th and
// the 12th; "update_contact_group/http-404+1" the first update.
func ParseFault(s string) (Fault, error) {
	var f Fault
	var err error
	rest := s
	if command, kind, found := strings.Cut(s, "/"); found {
		f.Command, rest = chat.Command(command), kind
	}
	rest, last, found := strings.Cut(rest, "+")
	if found {
		if f.For, err = positive(last); err != nil {
			return Fault{}, fmt.Errorf("fault %q: the number of calls after +: %w", s, err)
		}
	}
	rest, after, found := strings.Cut(rest, "@")
	if found {
		if f.After, err = positive(after); err != nil {
			return Fault{}, fmt.Errorf("fault %q: the number of calls after @: %w", s, err)
		}
	}
	kind, share, found := strings.Cut(rest, ":")
	f.Kind = kind
	f.Share = 1
	if found {
		number, percent := strings.CutSuffix(share, "%")
		if f.Share, err = strconv.ParseFloat(number, 64); err != nil {
			return Fault{}, fmt.Errorf("fault %q: the share %q is no number", s, share)
		}
		if percent {
			f.Share /= 100
		}
		if !(f.Share > 0) {
			return Fault{}, fmt.Errorf("fault %q: a share of %s never strikes", s, share)
		}
	}
	if err := f.validate(); err != nil {
		return Fault{}, err
	}
	return f, nil
}

func positive(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not 1 or more", s)
	}
	return n, nil
}

// String returns the text form that [ParseFault] reads.
func (f Fault) String() string {
	s := f.Kind
	if f.Command != "" {
		s = string(f.Command) + "/" + s
	}
	if f.Share != 0 && f.Share != 1 {
		s += ":" + strconv.FormatFloat(f.Share, 'f', -1, 64)
	}
	if f.After > 0 {
		s += "@" + strconv.Itoa(f.After)
	}
	if f.For > 0 {
		s += "+" + strconv.Itoa(f.For)
	}
	return s
}

// MarshalText returns the text form.
func (f Fault) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads the text form.
func (f *Fault) UnmarshalText(b []byte) error {
	parsed, err := ParseFault(string(b))
	if err == nil {
		*f = parsed
	}
	return err
}

func (f *Fault) validate() error {
	_, isCode := f.code()
	_, isStatus := f.status()
	_, isItem := f.itemCode()
	switch f.Kind {
	case Reset, Hang, Lost, Cut, Garbage, Late:
	default:
		if !isCode && !isStatus && !isItem {
			return fmt.Errorf("fault %q: neither a code, http-STATUS, item-CODE, reset, hang, lost, cut, garbage nor late", f.Kind)
		}
	}
	switch {
	case f.Command != "" && !slices.Contains(chat.Commands(), f.Command):
		return fmt.Errorf("fault %q: there is no command %q", f.Kind, f.Command)
	case !(f.Share >= 0 && f.Share <= 1):
		return fmt.Errorf("fault %q: a share of %v is not from 0 to 1", f.Kind, f.Share)
	case f.After < 0:
		return fmt.Errorf("fault %q: after is negative", f.Kind)
	case f.For < 0:
		return fmt.Errorf("fault %q: for is negative", f.Kind)
	}
	return nil
}

// code returns the code of the response, if the kind is a code.
func (f *Fault) code() (int, bool) { return apiCode(f.Kind) }

// itemCode returns the code for a conversation, if this is an item fault.
func (f *Fault) itemCode() (int, bool) {
	code, ok := strings.CutPrefix(f.Kind, itemKind)
	if !ok {
		return 0, false
	}
	return apiCode(code)
}

// status returns the HTTP status, if the kind is one. 200 would be no fault, and 1xx no response.
func (f *Fault) status() (int, bool) {
	text, ok := strings.CutPrefix(f.Kind, httpKind)
	n, err := strconv.Atoi(text)
	return n, ok && err == nil && len(text) == 3 && 201 <= n && n <= 599
}

// apiCode reads a code of the API: five digits, the first not 0.
func apiCode(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && len(s) == 5 && n >= 10000
}

// applied reports whether the groups change at once although the call fails.
func (f *Fault) applied() bool { return f.Kind == Lost || f.Kind == Cut || f.Kind == Garbage }

// active reports whether the fault can strike the call with this number; the first is 1.
func (f *Fault) active(call int) bool {
	return call > f.After && (f.For == 0 || call <= f.After+f.For)
}

// strikes decides at random whether the fault strikes.
func (f *Fault) strikes(rng *rand.Rand) bool {
	return f.Share == 0 || f.Share == 1 || rng.Float64() < f.Share
}
