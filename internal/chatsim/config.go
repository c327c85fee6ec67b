package chatsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"groupferry/internal/chat"
)

// Existing says what create does to a group that exists already. The documents do not say.
type Existing string

// The readings of create.
const (
	Append  Existing = "append"  // the conversations are added to the group; the default
	Replace Existing = "replace" // the group holds the new conversations only
	Refuse  Existing = "refuse"  // the call fails with RefuseCode
)

// Names says which names are those of one group. The documents do not say.
type Names string

// The readings of names.
const (
	Exact Names = "exact" // those that are equal; the default
	Fold  Names = "fold"  // those that differ in case or Unicode form only, too
)

// The editions of an app.
const (
	Ultimate = "ultimate" // has conversation groups; the default
	Standard = "standard" // rejects every call with 51013
)

// defaultLate is shorter than the 3 s after which the API itself gives up on a call.
const defaultLate = 2500 * time.Millisecond

// defaultPageSize is the maximum number of conversations in a response to get. The documents do not give the API's own
// number.
const defaultPageSize = 100

// Config says what a simulator accepts and how it fails. The zero value is an app with the demo key, the documented
// limits and no faults.
//
// Its JSON form is the body of POST /control. There, a missing field keeps its value; fail_ids is merged key by key,
// and a code of 0 removes an id. Durations are strings such as "50ms", or nanoseconds.
type Config struct {
	SDKAppID  uint64      `json:"sdk_app_id,omitempty"` // default DemoSDKAppID
	Admins    []string    `json:"admins,omitempty"`     // default chat.DefaultAdmin
	SecretKey chat.Secret `json:"secret_key,omitempty"` // default DemoSecretKey

	Rate    int `json:"rate,omitempty"`     // calls of a command accepted in any second; default chat.MaxRate, < 0: no limit
	AppRate int `json:"app_rate,omitempty"` // calls of all commands accepted in any second; 0: no limit

	Existing   Existing `json:"existing,omitempty"`
	RefuseCode int      `json:"refuse_code,omitempty"` // code of the response for Refuse; default 50002

	Names Names `json:"names,omitempty"`

	NoUpdate       bool   `json:"no_update,omitempty"`        // update_contact_group is not offered
	NoGet          bool   `json:"no_get,omitempty"`           // get_contact_group is not offered
	NoDelete       bool   `json:"no_delete,omitempty"`        // del_contact_group is not offered
	NotOfferedCode int    `json:"not_offered_code,omitempty"` // the response to such a command: 60009, or 0 for HTTP 404
	Edition        string `json:"edition,omitempty"`          // Ultimate or Standard
	Disabled       bool   `json:"disabled,omitempty"`         // the app is disabled: 60016

	Latency time.Duration `json:"latency,omitempty"` // how long a call takes
	Jitter  time.Duration `json:"jitter,omitempty"`  // up to this much more or less, evenly distributed

	Faults  []Fault        `json:"faults,omitempty"`   // the first that strikes a call is injected
	FailIDs map[string]int `json:"fail_ids,omitempty"` // code for calls of this user, and for this conversation in any call

	Late time.Duration `json:"late,omitempty"` // delay until a call with the fault "late" is applied; default 2.5 s

	PageSize  int    `json:"page_size,omitempty"`  // conversations in a response to get; default 100
	ListLimit int    `json:"list_limit,omitempty"` // conversations that get lists of a user, as of a plan that cuts lists short: no page is the last; 0: all
	Seed      uint64 `json:"seed,omitempty"`       // of faults and jitter; sequential calls repeat exactly
}

// Validate returns an error that names the first invalid field, or nil.
func (c *Config) Validate() error {
	switch c.Existing {
	case "", Append, Replace, Refuse:
	default:
		return fmt.Errorf("existing: %q is none of append, replace, refuse", c.Existing)
	}
	switch c.Names {
	case "", Exact, Fold:
	default:
		return fmt.Errorf("names: %q is none of exact, fold", c.Names)
	}
	switch c.Edition {
	case "", Ultimate, Standard:
	default:
		return fmt.Errorf("edition: %q is none of ultimate, standard", c.Edition)
	}
	switch {
	case c.NotOfferedCode != 0 && c.NotOfferedCode != chat.CodeNotOffered:
		return fmt.Errorf("not_offered_code: %d is neither 0 nor %d", c.NotOfferedCode, chat.CodeNotOffered)
	case c.AppRate < 0:
		return errors.New("app_rate: negative")
	case c.Latency < 0:
		return errors.New("latency: negative")
	case c.Jitter < 0:
		return errors.New("jitter: negative")
	case c.Late < 0:
		return errors.New("late: negative")
	case c.PageSize < 0:
		return errors.New("page_size: negative")
	case c.ListLimit < 0:
		return errors.New("list_limit: negative")
	case slices.Contains(c.Admins, ""):
		return errors.New("admins: an empty name")
	}
	for _, f := range c.Faults {
		if err := f.validate(); err != nil {
			return fmt.Errorf("faults: %w", err)
		}
	}
	return nil
}

// withDefaults returns a copy with the defaults for zero fields. It shares no memory with c.
func (c *Config) withDefaults() Config {
	d := c.clone()
	if d.SDKAppID == 0 {
		d.SDKAppID = DemoSDKAppID
	}
	if len(d.Admins) == 0 {
		d.Admins = []string{chat.DefaultAdmin}
	}
	if d.SecretKey == "" {
		d.SecretKey = DemoSecretKey
	}
	if d.Rate == 0 {
		d.Rate = chat.MaxRate
	}
	if d.Existing == "" {
		d.Existing = Append
	}
	if d.Names == "" {
		d.Names = Exact
	}
	if d.RefuseCode == 0 {
		d.RefuseCode = chat.CodeBadParameter
	}
	if d.Edition == "" {
		d.Edition = Ultimate
	}
	if d.Late == 0 {
		d.Late = defaultLate
	}
	if d.PageSize == 0 {
		d.PageSize = defaultPageSize
	}
	maps.DeleteFunc(d.FailIDs, func(_ string, code int) bool { return code == 0 })
	return d
}

func (c *Config) clone() Config {
	d := *c
	d.Admins = slices.Clone(c.Admins)
	d.Faults = slices.Clone(c.Faults)
	d.FailIDs = maps.Clone(c.FailIDs)
	return d
}

// offered reports whether the app offers the command.
func (c *Config) offered(command chat.Command) bool {
	switch command {
	case chat.UpdateContactGroup:
		return !c.NoUpdate
	case chat.GetContactGroup:
		return !c.NoGet
	case chat.DelContactGroup:
		return !c.NoDelete
	}
	return true
}

// configFields is a Config without methods.
type configFields Config

// wireConfig is the JSON form: its own fields shadow those of the same name in configFields.
type wireConfig struct {
	*configFields
	Latency duration `json:"latency,omitempty"`
	Jitter  duration `json:"jitter,omitempty"`
	Late    duration `json:"late,omitempty"`
}

// MarshalJSON writes the fields that are not zero. It hides the secret key.
func (c Config) MarshalJSON() ([]byte, error) {
	return json.Marshal(wireConfig{configFields: (*configFields)(&c), Latency: duration(c.Latency), Jitter: duration(c.Jitter), Late: duration(c.Late)})
}

// UnmarshalJSON sets the fields that are present. Unknown fields are an error: a fault with a typo in its name would
// never be injected. A hidden secret key leaves the key as it is.
func (c *Config) UnmarshalJSON(b []byte) error {
	next := c.clone()
	w := wireConfig{configFields: (*configFields)(&next), Latency: duration(c.Latency), Jitter: duration(c.Jitter), Late: duration(c.Late)}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&w); err != nil {
		return err
	}
	next.Latency, next.Jitter, next.Late = time.Duration(w.Latency), time.Duration(w.Jitter), time.Duration(w.Late)
	if next.SecretKey.Reveal() == next.SecretKey.String() {
		next.SecretKey = c.SecretKey
	}
	*c = next
	return nil
}

type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalJSON(b []byte) error {
	var n int64
	if err := json.Unmarshal(b, &n); err == nil {
		*d = duration(n)
		return nil
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	parsed, err := time.ParseDuration(text)
	*d = duration(parsed)
	return err
}
