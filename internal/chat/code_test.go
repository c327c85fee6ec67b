package chat

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// classified is the class table of the project's notes on the API, written out once more.
var classified = map[Class][]int{
	Retry:        {50004, 50005, 60008, 60013, 60014, 70169, 70202, 70500},
	Throttle:     {60007, 60011, 60018, 60019},
	Refresh:      {70001, 70052},
	HaltRepeated: {60002, 60004, 60005},
	Halt: {
		50003, 51013, 60006, 60009, 60010, 60012, 60016, 60017, 60020, 60021, 70002, 70003, 70005, 70009, 70013, 70014,
		70016, 70020, 70050, 70114, 70403,
	},
	Permanent: {
		50001, 50002, 51006, 51008, 51009, 51010, 51011, 51012, 60003, 60015, 70051, 70107, 70206, 70398, 70402, 80001,
	},
	ItemRetry: {51007},
}

func TestEveryCodeHasItsClass(t *testing.T) {
	var all []int
	for class, list := range classified {
		for _, code := range list {
			all = append(all, code)
			if got := ClassOf(code); got != class {
				t.Errorf("class of %d: got %v, want %v", code, got, class)
			}
			if got, want := Remedy(code) != "", class != Throttle; got != want {
				t.Errorf("remedy of %d: got %q, want one: %v", code, Remedy(code), want)
			}
			if m := Meaning(code); m == "" || m == Meaning(1) {
				t.Errorf("meaning of %d: got %q, want its own", code, m)
			}
		}
	}
	slices.Sort(all)
	if got := Codes(); !slices.Equal(got, all) {
		t.Errorf("codes: got %v, want %v", got, all)
	}
	for _, code := range []int{0, 1, 50000, 51014, 99999, -1} {
		if got := ClassOf(code); got != Unknown {
			t.Errorf("class of %d: got %v, want %v", code, got, Unknown)
		}
	}
}

func TestClassNames(t *testing.T) {
	for class, want := range map[Class]string{
		Unknown: "unknown", Retry: "retry", Throttle: "throttle", Refresh: "refresh", Halt: "halt",
		HaltRepeated: "halt-repeated", Permanent: "permanent", ItemRetry: "item-retry", -1: "unknown", 99: "unknown",
	} {
		if got := class.String(); got != want {
			t.Errorf("name of class %d: got %q, want %q", int(class), got, want)
		}
	}
}

func TestErrorTellsWhatToDo(t *testing.T) {
	tests := []struct {
		err        Error
		class      Class
		transport  bool
		notOffered bool
		reason     string
		text       string
	}{
		{Error{Code: 51013, Info: "buy"}, Halt, false, false, "51013", "c: 51013 the app's edition lacks the feature: buy"},
		{Error{Code: 60007}, Throttle, false, false, "60007", "c: 60007 over the call limit of this command"},
		{Error{Code: 60009}, Halt, false, true, "60009", ""},
		{Error{Code: 424242}, Unknown, false, false, "424242", "c: 424242 a code that is in no document"},
		{Error{Status: 404, Info: "no"}, HaltRepeated, false, true, "http-404", "c: HTTP status 404: no"},
		{Error{Status: 502}, Retry, true, false, "http-502", "c: HTTP status 502"},
		{Error{Status: 429}, Retry, true, false, "http-429", ""},
		{Error{Status: 408}, Retry, true, false, "http-408", ""},
		{Error{Status: 204}, Retry, true, false, "http-204", ""},
		{Error{Status: 403}, HaltRepeated, false, false, "http-403", ""},
		{Error{Status: 302}, Unknown, false, false, "http-302", ""},
		{Error{Cause: context.Canceled}, Retry, false, false, "cancelled", "c: context canceled"},
		{Error{Cause: context.DeadlineExceeded}, Retry, true, false, "timeout", ""},
		{Error{Cause: fmt.Errorf("dial: %w", syscall.ECONNREFUSED)}, Retry, true, false, "refused", ""},
		{Error{Cause: syscall.ECONNRESET}, Retry, true, false, "reset", ""},
		{Error{Cause: errPermitEnded}, Retry, false, false, "unsent", "c: not sent: the permit has ended"},
		{Error{Cause: fmt.Errorf("%w: %w", errUnsent, context.DeadlineExceeded)}, Retry, false, false, "unsent", ""},
		{Error{Cause: errCutOff}, Retry, true, false, "cut-off", ""},
		{Error{Cause: errUndecodable}, Retry, true, false, "undecodable", ""},
		{Error{Cause: io.ErrShortWrite}, Retry, true, false, "network", ""},
		{Error{}, Retry, true, false, "network", "c: no response"},
	}
	for _, tt := range tests {
		e := tt.err
		e.Command = "c"
		if got := e.Class(); got != tt.class {
			t.Errorf("class of %v: got %v, want %v", &e, got, tt.class)
		}
		if got := e.Transport(); got != tt.transport {
			t.Errorf("transport of %v: got %v, want %v", &e, got, tt.transport)
		}
		if got := e.NotOffered(); got != tt.notOffered {
			t.Errorf("not offered of %v: got %v, want %v", &e, got, tt.notOffered)
		}
		if got := e.Reason(); got != tt.reason {
			t.Errorf("reason of %v: got %q, want %q", &e, got, tt.reason)
		}
		if got := e.Error(); tt.text != "" && got != tt.text {
			t.Errorf("text: got %q, want %q", got, tt.text)
		}
		if tt.class == Halt && e.Remedy() == "" {
			t.Errorf("remedy of %v: got none", &e)
		}
		known := e.Code != 0 || e.Status != 0 || slices.Contains(Reasons(), e.Reason())
		if !known {
			t.Errorf("reason of %v: %q is not listed", &e, e.Reason())
		}
	}
}

func TestCleanText(t *testing.T) {
	sig := SignUserSig("k", 1, "administrator", day, defaultSigLifetime).Reveal()
	tests := []struct{ name, in, want string }{
		{"plain", "bad id", "bad id"},
		{"controls", "a\x00b\x1b[31mc\r\nd\u202ee", "a b [31mc  d e"},
		{"the signature", "sig " + sig + " end", "sig (secret) end"},
		{"another signature in a query", "?a=b&UserSig=xyz&random=1", "?a=b&UserSig=(secret)&random=1"},
		{"escaped", "usersig%3Dabc%2Adef", "usersig%3D(secret)"},
		{"json", `{"usersig": "abc"}`, `{"usersig": "(secret)"}`},
		{"long", strings.Repeat("é", 300), strings.Repeat("é", 126) + "…"},
		{"a signature where the cut is", strings.Repeat("x", maxText-20) + sig, strings.Repeat("x", maxText-20) + hidden},
	}
	for _, tt := range tests {
		if got := cleanText(tt.in, "k3y"); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
