package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// Schema is the version of what is stored: which streams there are, with which rules, subjects and contents.
	Schema = 1

	// schemaKey is the metadata that carries it, on every stream of ours.
	schemaKey = "groupferry-schema"

	// duplicatesWindow is the smallest that the server takes. Nothing here is told apart by message ids: the server
	// forgets them with time, and with the message.
	duplicatesWindow = 100 * time.Millisecond
)

// EnsureStream opens the stream of that name, and makes it if it is not there, unless JoinOnly: [ErrNoData] then. Replicas,
// the window of duplicates and the schema are filled in where want leaves them empty. A stream that is there is checked,
// and not changed: an administrator may have given it replicas, placement or a limit. [ErrSchema] is wrapped when it has
// another schema, or none.
func (c *Conn) EnsureStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	return c.ensureStream(ctx, want, c.cfg.JoinOnly)
}

func (c *Conn) ensureStream(
	ctx context.Context, want jetstream.StreamConfig, joinOnly bool,
) (jetstream.Stream, error) {
	if want.Replicas == 0 {
		want.Replicas = c.cfg.Replicas
	}
	if want.Duplicates == 0 {
		want.Duplicates = duplicatesWindow
	}
	if want.Metadata == nil {
		want.Metadata = map[string]string{schemaKey: strconv.Itoa(Schema)}
	}
	var s jetstream.Stream
	creating := false
	err := c.Ask(ctx, func(ctx context.Context) (err error) {
		s, err = c.js.Stream(ctx, want.Name)
		if !errors.Is(err, jetstream.ErrStreamNotFound) || joinOnly {
			return err
		}
		creating = true
		Failpoint("stream-before")
		FailInside("stream-inside")
		s, err = c.js.CreateStream(ctx, want)
		Failpoint("stream-after")
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // someone else was quicker
			s, err = c.js.Stream(ctx, want.Name)
		}
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) && joinOnly {
		return nil, fmt.Errorf("%w in namespace %s of %s", ErrNoData, c.cfg.Namespace, c.where)
	}
	if creating && errors.Is(err, ErrDenied) {
		return nil, fmt.Errorf("stream %s is not there yet, and this user may not make it; let one who may run this first: %w",
			want.Name, err)
	}
	if err != nil {
		return nil, c.streamFault(ctx, "stream "+want.Name, err)
	}
	got := s.CachedInfo().Config
	if err := c.checkSchema(want.Name, got.Metadata); err != nil {
		return nil, err
	}
	if wrong := differences(got, want); len(wrong) > 0 {
		return nil, fmt.Errorf("stream %s on %s cannot be used, jobs could be lost or doubled: %s; "+
			"fix it, or choose another namespace", want.Name, c.where, strings.Join(wrong, ", "))
	}
	return s, nil
}

// EnsureBucket opens the key-value bucket NS-name, with a history of 1, as [Conn.EnsureStream] does with its stream. Only
// the stream's leader answers a Get: a replica could be behind.
func (c *Conn) EnsureBucket(ctx context.Context, name, description string) (jetstream.KeyValue, error) {
	return c.ensureBucket(ctx, name, description, c.cfg.JoinOnly)
}

func (c *Conn) ensureBucket(
	ctx context.Context, name, description string, joinOnly bool,
) (jetstream.KeyValue, error) {
	bucket := c.cfg.Namespace + "-" + name
	_, err := c.ensureStream(ctx, jetstream.StreamConfig{
		Name:              "KV_" + bucket,
		Description:       description,
		Subjects:          []string{"$KV." + bucket + ".>"},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardNew,
		MaxMsgsPerSubject: 1,
		Storage:           jetstream.FileStorage,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       false,
	}, joinOnly)
	if err != nil {
		return nil, err
	}
	var kv jetstream.KeyValue
	err = c.Ask(ctx, func(ctx context.Context) (err error) {
		kv, err = c.js.KeyValue(ctx, bucket)
		return err
	})
	return kv, c.streamFault(ctx, "bucket "+bucket, err)
}

// streamFault tells a server without JetStream, where nobody listens to a request, from one that does not answer it.
func (c *Conn) streamFault(ctx context.Context, what string, err error) error {
	if c.embedded == nil && (errors.Is(err, nats.ErrNoResponders) || WithoutJetStream(err)) {
		return fmt.Errorf("%w at %s", ErrNoJetStream, c.where)
	}
	return c.Fault(ctx, what, err)
}

func (c *Conn) checkSchema(stream string, meta map[string]string) error {
	switch found := meta[schemaKey]; found {
	case strconv.Itoa(Schema):
		return nil
	case "":
		return fmt.Errorf("stream %s on %s was not made by groupferry: %w", stream, c.where, ErrSchema)
	default:
		return fmt.Errorf("stream %s on %s has schema %s, and this groupferry reads schema %d only: %w",
			stream, c.where, found, Schema, ErrSchema)
	}
}

// differences lists the rules on which no job being lost or doubled rests, and which a stream does not keep. A limit on
// a stream that then refuses messages is nobody's loss.
func differences(got, want jetstream.StreamConfig) []string {
	var wrong []string
	differ := func(what string, got, want any) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s is %v instead of %v", what, got, want))
		}
	}
	differ("retention", got.Retention, want.Retention)
	differ("storage", got.Storage, want.Storage)
	differ("discard", got.Discard, want.Discard)
	differ("max messages per subject", max(got.MaxMsgsPerSubject, 0), max(want.MaxMsgsPerSubject, 0))
	differ("max age", got.MaxAge, want.MaxAge)
	if got.Discard != jetstream.DiscardNew {
		differ("max messages", max(got.MaxMsgs, 0), max(want.MaxMsgs, 0))
		differ("max bytes", max(got.MaxBytes, 0), max(want.MaxBytes, 0))
	}
	differ("atomic publish", got.AllowAtomicPublish || !want.AllowAtomicPublish, true)
	differ("rollup", got.AllowRollup || !want.AllowRollup, true)
	differ("direct get", got.AllowDirect, want.AllowDirect)
	differ("deny purge", got.DenyPurge, want.DenyPurge)
	differ("sealed", got.Sealed, want.Sealed)
	slices.Sort(got.Subjects)
	if sorted := slices.Sorted(slices.Values(want.Subjects)); !slices.Equal(got.Subjects, sorted) {
		wrong = append(wrong, fmt.Sprintf("subjects are %q instead of %q", got.Subjects, sorted))
	}
	return wrong
}

// A Msg is one message of a stream, as its leader has it.
type Msg struct {
	Subject  string
	Sequence uint64
	Header   nats.Header // nil if it has none
	Data     []byte
	Time     time.Time // the server's clock when it was stored
}

// LastMsg reads the last message with that subject, without wildcards. The stream's leader answers, whatever AllowDirect
// says: what it acknowledged is seen. [ErrNotFound] is wrapped if there is none, and a [*DamagedError] if there is one that
// the server cannot read: it says the same in both cases, so the second one is counted.
func (c *Conn) LastMsg(ctx context.Context, stream, subject string) (*Msg, error) {
	for range lastMsgTries { // it may have been written after it was asked for, and be removed when it is the next time
		m, err := c.getMsg(ctx, stream, getRequest{LastFor: subject})
		if !errors.Is(err, ErrNotFound) {
			return m, err
		}
		state, stateErr := c.StreamState(ctx, stream, subject)
		if stateErr != nil {
			return nil, stateErr
		}
		if state.Subjects[subject] == 0 {
			return nil, err
		}
	}
	return nil, &DamagedError{
		Path: "stream " + stream + " on " + c.where,
		What: "the last message of subject " + subject + " cannot be read", Remedy: c.remedy(),
	}
}

// lastMsgTries is how often a message has to be counted, and not found, to be taken for damaged.
const lastMsgTries = 4

// remedy is what helps against damage.
func (c *Conn) remedy() string {
	if c.embedded != nil {
		return c.embedded.remedy()
	}
	return "restore the stream from a backup, or from a replica"
}

// MsgAt reads the message with that sequence, as [Conn.LastMsg] does.
func (c *Conn) MsgAt(ctx context.Context, stream string, seq uint64) (*Msg, error) {
	return c.getMsg(ctx, stream, getRequest{Seq: seq})
}

// NextMsg reads the first message with that subject, which may have wildcards, at seq or after it, as [Conn.LastMsg] does.
func (c *Conn) NextMsg(ctx context.Context, stream string, seq uint64, subject string) (*Msg, error) {
	return c.getMsg(ctx, stream, getRequest{Seq: max(seq, 1), NextFor: subject})
}

// A getRequest and a getResponse are the server's io.nats.jetstream.api.v1.stream_msg_get.
type getRequest struct {
	Seq     uint64 `json:"seq,omitempty"`
	LastFor string `json:"last_by_subj,omitempty"`
	NextFor string `json:"next_by_subj,omitempty"`
}

type getResponse struct {
	Error   *jetstream.APIError `json:"error"`
	Message *struct {
		Subject string    `json:"subject"`
		Seq     uint64    `json:"seq"`
		Header  []byte    `json:"hdrs"`
		Data    []byte    `json:"data"`
		Time    time.Time `json:"time"`
	} `json:"message"`
}

func (c *Conn) getMsg(ctx context.Context, stream string, request getRequest) (*Msg, error) {
	var m *Msg
	err := c.Ask(ctx, func(ctx context.Context) (err error) {
		m, err = c.getOnce(ctx, stream, request)
		return err
	})
	return m, c.Fault(ctx, "read stream "+stream, err)
}

func (c *Conn) getOnce(ctx context.Context, stream string, request getRequest) (*Msg, error) {
	var r getResponse
	if err := c.call(ctx, "STREAM.MSG.GET."+stream, request, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Error != nil && r.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, ErrNotFound
	case r.Error != nil:
		return nil, r.Error
	case r.Message == nil:
		return nil, errors.New("the answer holds no message")
	}
	m := &Msg{Subject: r.Message.Subject, Sequence: r.Message.Seq, Data: r.Message.Data, Time: r.Message.Time}
	if len(r.Message.Header) > 0 {
		var err error
		if m.Header, err = nats.DecodeHeadersMsg(r.Message.Header); err != nil {
			return nil, fmt.Errorf("message %d: %w", m.Sequence, err)
		}
	}
	return m, nil
}

// call makes one request to JetStream's API.
func (c *Conn) call(ctx context.Context, name string, request, response any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	reply, err := c.nc.RequestWithContext(ctx, c.apiPrefix+name, b)
	if err != nil {
		return err
	}
	return json.Unmarshal(reply.Data, response)
}

// A State is how far a stream goes, as its leader has it.
type State struct {
	FirstSeq, LastSeq uint64 // FirstSeq is LastSeq+1 in an empty stream that held something
	Msgs              uint64 // of all subjects
	Bytes             uint64
	Subjects          map[string]uint64
}

// StreamState asks the stream's leader for its state, and with a filter for the number of messages of each subject that
// it covers. Above 100,000 subjects, the server's page, the numbers are not all of one moment; the rest is of the last page.
func (c *Conn) StreamState(ctx context.Context, stream, subjectFilter string) (State, error) {
	state := State{}
	for offset := 0; ; {
		var r infoResponse
		err := c.Ask(ctx, func(ctx context.Context) error {
			r = infoResponse{}
			if err := c.call(ctx, "STREAM.INFO."+stream, infoRequest{subjectFilter, offset}, &r); err != nil {
				return err
			}
			if r.Error != nil {
				return r.Error
			}
			return nil
		})
		if err != nil {
			return State{}, c.Fault(ctx, "ask for the state of stream "+stream, err)
		}
		subjects := state.Subjects
		if subjects == nil {
			subjects = r.State.Subjects
		} else {
			for s, n := range r.State.Subjects {
				subjects[s] = n
			}
		}
		state = State{r.State.FirstSeq, r.State.LastSeq, r.State.Msgs, r.State.Bytes, subjects}
		offset += len(r.State.Subjects)
		if offset >= r.Total || len(r.State.Subjects) == 0 {
			return state, nil
		}
	}
}

// An infoRequest and an infoResponse are the server's io.nats.jetstream.api.v1.stream_info.
type infoRequest struct {
	Filter string `json:"subjects_filter,omitempty"`
	Offset int    `json:"offset,omitempty"`
}

type infoResponse struct {
	Error *jetstream.APIError `json:"error"`
	Total int                 `json:"total"` // subjects on all pages
	State struct {
		Msgs     uint64            `json:"messages"`
		Bytes    uint64            `json:"bytes"`
		FirstSeq uint64            `json:"first_seq"`
		LastSeq  uint64            `json:"last_seq"`
		Subjects map[string]uint64 `json:"subjects"`
	} `json:"state"`
}
