package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestReadMessages(t *testing.T) {
	c := open(t, Config{})
	ctx := t.Context()
	ensure(t, c, "s")
	if state, err := c.StreamState(ctx, "s", "s.>"); err != nil || state.LastSeq != 0 || state.Msgs != 0 || len(state.Subjects) != 0 {
		t.Errorf("empty: got %+v, %v", state, err)
	}
	if _, err := c.LastMsg(ctx, "s", "s.a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty: got %v, want %v", err, ErrNotFound)
	}
	before := time.Now().Add(-time.Minute)
	for _, m := range []string{"a one", "b two", "a three", "c four", "b five"} { // sequences 1 to 5
		subject, data, _ := strings.Cut(m, " ")
		if data != "three" {
			publish(t, c, "s."+subject, data)
			continue
		}
		_, err := c.JetStream().PublishMsg(ctx, &nats.Msg{Subject: "s.a", Data: []byte(data), Header: nats.Header{"K": {"v", "w"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, m *Msg, err error, seq uint64, subject, data string) {
		t.Helper()
		if seq == 0 {
			if m != nil || !errors.Is(err, ErrNotFound) || Unreachable(err) {
				t.Errorf("%s: got %+v, %v; want %v", what, m, err, ErrNotFound)
			}
			return
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if m.Sequence != seq || m.Subject != subject || string(m.Data) != data || m.Time.Before(before) {
			t.Errorf("%s: got %+v, want %d %s %s", what, m, seq, subject, data)
		}
	}
	m, err := c.LastMsg(ctx, "s", "s.a")
	check("last of a", m, err, 3, "s.a", "three")
	if got := m.Header.Values("K"); len(got) != 2 || got[1] != "w" {
		t.Errorf("got header %v", m.Header)
	}
	m, err = c.LastMsg(ctx, "s", "s.b")
	check("last of b", m, err, 5, "s.b", "five")
	if m.Header != nil {
		t.Errorf("got header %v, want none", m.Header)
	}
	m, err = c.LastMsg(ctx, "s", "s.none")
	check("last of none", m, err, 0, "", "")
	m, err = c.MsgAt(ctx, "s", 4)
	check("at 4", m, err, 4, "s.c", "four")
	m, err = c.MsgAt(ctx, "s", 6)
	check("at 6", m, err, 0, "", "")
	for _, next := range []struct {
		from    uint64
		subject string
		seq     uint64
		data    string
	}{{0, "s.b", 2, "two"}, {2, "s.b", 2, "two"}, {3, "s.b", 5, "five"}, {6, "s.b", 0, ""}, {4, "s.a", 0, ""}, {2, "s.*", 2, "two"}} {
		m, err = c.NextMsg(ctx, "s", next.from, next.subject)
		subject := next.subject
		if m != nil && subject == "s.*" {
			subject = m.Subject
		}
		check(fmt.Sprint("next ", next), m, err, next.seq, subject, next.data)
	}
	state, err := c.StreamState(ctx, "s", "s.*")
	if want := map[string]uint64{"s.a": 2, "s.b": 2, "s.c": 1}; err != nil || state.FirstSeq != 1 || state.LastSeq != 5 || state.Msgs != 5 || !maps.Equal(state.Subjects, want) {
		t.Errorf("got %+v, %v; want 5 messages, %v", state, err, want)
	}
	if state, err = c.StreamState(ctx, "s", "s.a"); err != nil || len(state.Subjects) != 1 || state.Msgs != 5 {
		t.Errorf("one subject: got %+v, %v", state, err)
	}
	if state, err = c.StreamState(ctx, "s", ""); err != nil || len(state.Subjects) != 0 || state.Msgs != 5 {
		t.Errorf("no filter: got %+v, %v", state, err)
	}
	for _, err := range []error{
		func() error { _, err := c.StreamState(ctx, "none", ""); return err }(),
		func() error { _, err := c.LastMsg(ctx, "none", "s.a"); return err }(),
	} {
		if !errors.Is(err, jetstream.ErrStreamNotFound) || Unreachable(err) || errors.Is(err, ErrNotFound) {
			t.Errorf("no such stream: got %v", err)
		}
	}
}

// TestPagesOfSubjects responds as a server that has more subjects than fit into one response.
func TestPagesOfSubjects(t *testing.T) {
	c := open(t, Config{})
	pages := fake(nil)
	pages.nc, pages.apiPrefix = c.nc, "test.API."
	const n, page = 25, 10
	sub, err := c.nc.Subscribe("test.API.STREAM.INFO.s", func(m *nats.Msg) {
		var request infoRequest
		if err := json.Unmarshal(m.Data, &request); err != nil || request.Filter != "s.*" {
			t.Errorf("got request %s, %v", m.Data, err)
		}
		var r infoResponse
		r.Total, r.State.Msgs, r.State.LastSeq = n, 2*n, uint64(2*n+request.Offset)
		r.State.Subjects = map[string]uint64{}
		for i := request.Offset; i < min(n, request.Offset+page); i++ {
			r.State.Subjects[fmt.Sprint("s.", i)] = 2
		}
		b, err := json.Marshal(r)
		if err == nil {
			err = m.Respond(b)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	state, err := pages.StreamState(t.Context(), "s", "s.*")
	if err != nil || state.Msgs != 2*n || len(state.Subjects) != n || state.LastSeq != 2*n+20 {
		t.Errorf("got %+v, %v; want %d subjects, and the rest of the last page", state, err, n)
	}
}

func TestLostRace(t *testing.T) {
	c := open(t, Config{})
	ensure(t, c, "s")
	publish(t, c, "s.a", "x")
	for _, opt := range []jetstream.PublishOpt{jetstream.WithExpectLastSequence(7), jetstream.WithExpectLastSequencePerSubject(7)} {
		if _, err := c.JetStream().Publish(t.Context(), "s.a", nil, opt); !LostRace(err) || Unreachable(err) {
			t.Errorf("got %v, want a lost race", err)
		}
	}
	if LostRace(nil) || LostRace(errors.New("x")) {
		t.Error("another error is taken for a lost race")
	}
}

func TestStreamThatIsNotOurs(t *testing.T) {
	c := open(t, Config{})
	tests := []struct {
		name   string
		change func(*jetstream.StreamConfig)
		want   string
		schema bool // ErrSchema
	}{
		{"as it is", func(*jetstream.StreamConfig) {}, "", false},
		{"a limit of its own", func(c *jetstream.StreamConfig) { c.MaxBytes, c.MaxMsgs = 1<<30, 9 }, "", false},
		{"described", func(c *jetstream.StreamConfig) { c.Description = "x"; c.Metadata["x"] = "y" }, "", false},
		{"no mark", func(c *jetstream.StreamConfig) { c.Metadata = nil }, "not made by groupferry", true},
		{"older", func(c *jetstream.StreamConfig) { c.Metadata[schemaKey] = "2" }, "has schema 2, and this groupferry reads schema 1", true},
		{"strange", func(c *jetstream.StreamConfig) { c.Metadata[schemaKey] = "x" }, "has schema x", true},
		{"age", func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, "max age is 1h0m0s", false},
		{"no rollup", func(c *jetstream.StreamConfig) { c.AllowRollup = false }, "rollup is false", false},
		{"no atomic", func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false }, "atomic publish is false", false},
		{"no direct", func(c *jetstream.StreamConfig) { c.AllowDirect = false }, "direct get is false", false},
		{"subjects", func(c *jetstream.StreamConfig) { c.Subjects = []string{"x.y"} }, "subjects are", false},
		{"per subject", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 2 }, "per subject is 2", false},
		{"old ones go", func(c *jetstream.StreamConfig) { c.Discard, c.MaxMsgs = jetstream.DiscardOld, 9 }, "max messages is 9", false},
		{"sealed", func(c *jetstream.StreamConfig) { c.Sealed, c.AllowRollup = true, false }, "sealed is true", false},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			name := fmt.Sprint("s", i)
			ensure(t, c, name)
			s, err := c.JetStream().Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			cfg := s.CachedInfo().Config
			if cfg.Metadata[schemaKey] != "1" || cfg.Replicas != 1 || cfg.Duplicates != duplicatesWindow || cfg.Storage != jetstream.FileStorage {
				t.Errorf("got %+v made", cfg)
			}
			test.change(&cfg)
			if _, err := c.JetStream().UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			_, err = c.EnsureStream(t.Context(), testStream(name))
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if errors.Is(err, ErrSchema) != test.schema {
				t.Errorf("got %v, want %v: %t", err, ErrSchema, test.schema)
			}
		})
	}
}

func TestEnsureBucket(t *testing.T) {
	c := open(t, Config{Namespace: "ns"})
	kv, err := c.EnsureBucket(t.Context(), "control", "what it is for")
	if err != nil {
		t.Fatal(err)
	}
	if kv.Bucket() != "ns-control" {
		t.Errorf("got bucket %s", kv.Bucket())
	}
	rev, err := kv.Create(t.Context(), "k", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Update(t.Context(), "k", []byte("2"), rev); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Update(t.Context(), "k", []byte("3"), rev); !LostRace(err) {
		t.Errorf("old revision: got %v, want a lost race", err)
	}
	if e, err := kv.Get(t.Context(), "k"); err != nil || string(e.Value()) != "2" {
		t.Errorf("got %v, %v; want 2", e, err)
	}
	if err := kv.Delete(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	if err := kv.Purge(t.Context(), "k"); err != nil {
		t.Error(err)
	}
	s, err := c.JetStream().Stream(t.Context(), "KV_ns-control")
	if err != nil {
		t.Fatal(err)
	}
	if cfg := s.CachedInfo().Config; cfg.AllowDirect || cfg.MaxMsgsPerSubject != 1 || cfg.Description != "what it is for" {
		t.Errorf("got %+v", cfg)
	}
	if _, err := c.EnsureBucket(t.Context(), "control", "another text"); err != nil {
		t.Errorf("again: %v", err)
	}
}
