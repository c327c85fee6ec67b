package queue

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"groupferry/internal/job"
)

func TestStateWireForm(t *testing.T) {
	want := state{
		Term: 3, Marker: 17, Group: 4, Incarnation: "inc", Generation: 1, Handed: 900, Unreadable: 1, Next: 5000,
		Unfinished: sequences{7, 8, 4000}, Ahead: 64, Crashes: []sequences{{8, 4000}, {7}}, Trial: sequences{7},
		At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Rate: 199.5, InFlight: 2, Requeued: 1, Closed: true,
	}
	want.Counts.Results, want.Counts.Jobs.Partial, want.Counts.Conversations.Failed = 9, 2, 3
	b := want.encode()
	if !strings.Contains(string(b), `"unfinished":[7,1,3992]`) {
		t.Errorf("sequences are not coded as differences: %s", b)
	}
	got, err := decodeState(b)
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestDecodeStateRefuses(t *testing.T) {
	s := state{Handed: 3, Unfinished: sequences{1, 2}}
	ok := string(s.encode())
	if _, err := decodeState([]byte(ok)); err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string]string{
		"no JSON":          "hello",
		"no version":       strings.Replace(ok, `"v":1`, `"v":0`, 1),
		"a sequence twice": strings.Replace(ok, `"unfinished":[1,1]`, `"unfinished":[1,0]`, 1),
		"an overflow":      strings.Replace(ok, `"unfinished":[1,1]`, `"unfinished":[1,18446744073709551615]`, 1),
		"more unfinished":  strings.Replace(ok, `"handed":3`, `"handed":1`, 1),
	} {
		if b == ok {
			t.Fatalf("%s: the text is not there: %s", what, ok)
		}
		if s, err := decodeState([]byte(b)); err == nil {
			t.Errorf("%s: got %+v, want an error", what, s)
		}
	}
	newer := strings.Replace(ok, `"v":1`, `"v":2,"handed":{}`, 1)
	if _, err := decodeState([]byte(newer)); !errors.Is(err, job.ErrVersion) {
		t.Errorf("a newer version: got %v, want %v", err, job.ErrVersion)
	}
}

func TestSequencesInOrder(t *testing.T) {
	if b, err := json.Marshal(sequences{5, 4}); err == nil {
		t.Errorf("got %s, want an error", b)
	}
}

func TestCounts(t *testing.T) {
	var c Counts
	failed := job.Result{Outcome: job.Partial, Calls: 3, Conversations: []job.ConversationResult{{}, {Code: "1"}, {Code: "2"}}}
	done := job.Result{Outcome: job.Done, Calls: 5, Conversations: []job.ConversationResult{{}, {}, {}}}
	c.add(shareOf(&failed), 1)
	if c.Jobs.Partial != 1 || c.Conversations.Done != 1 || c.Conversations.Failed != 2 || c.Calls != 3 {
		t.Errorf("a partial result: got %+v", c)
	}
	c.add(shareOf(&done), 1)
	c.add(shareOf(&failed), -1)
	if c.Jobs.Partial != 0 || c.Jobs.Done != 1 || c.Conversations.Done != 3 || c.Conversations.Failed != 0 || c.Calls != 5 {
		t.Errorf("replaced by one that is done: got %+v", c)
	}
}

// What failed is counted by code, in a bounded number of them; what a retry replaces counts no more, and a copy of the counts
// stays as it is.
func TestCountsOfCodes(t *testing.T) {
	want := func(when string, c *Counts, want map[string]int64) {
		t.Helper()
		if !maps.Equal(c.Codes, want) {
			t.Errorf("%s: got %v, want %v", when, c.Codes, want)
		}
	}
	var c Counts
	two := job.Result{Outcome: job.Partial, Conversations: []job.ConversationResult{
		{}, {Code: "50001"}, {Code: "51007"}, {Code: "51007", Conversation: job.Conversation{Op: job.Remove}}}}
	renamed := job.Result{Outcome: job.Failed, Code: "not-renamed", Rename: "old"}
	c.add(shareOf(&two), 1)
	copied := c
	c.add(shareOf(&renamed), 1)
	want("all", &c, map[string]int64{"50001": 1, "51007": 2, "not-renamed": 1})
	want("a copy", &copied, map[string]int64{"50001": 1, "51007": 2})
	c.add(shareOf(&two), -1)
	want("replaced", &c, map[string]int64{"not-renamed": 1})
	c.add(shareOf(&two), -1) // as where an earlier version did not count it
	want("replaced, and never counted", &c, map[string]int64{"not-renamed": 1})
	for i := range 2 * MaxCodes {
		c.add(shareOf(&job.Result{Outcome: job.Failed, Code: "x", Conversations: []job.ConversationResult{{Code: strconv.Itoa(i)}}}), 1)
	}
	if len(c.Codes) != MaxCodes+1 || c.Codes[OtherCodes] != MaxCodes+1 {
		t.Errorf("many codes: got %d and %d others, want %d and %d", len(c.Codes), c.Codes[OtherCodes], MaxCodes+1, MaxCodes+1)
	}
}
