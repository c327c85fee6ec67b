package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/job"
)

const (
	// schema is the version of the topology: which streams there are, with which rules and subjects. In version 1 the
	// jobs stream was a work queue, and it is worked off as that where it still is one.
	schema = 2

	// schemaKey is the metadata that carries it, on every stream and bucket of ours.
	schemaKey = "groupferry-schema"

	// duplicatesWindow is the smallest that the server takes. Nothing here is told apart by message ids: the server
	// forgets them with time, and with the message.
	duplicatesWindow = 100 * time.Millisecond
)

func (q *Queue) jobsStream() string    { return q.cfg.Namespace + "-jobs" }
func (q *Queue) resultsStream() string { return q.cfg.Namespace + "-results" }
func (q *Queue) controlBucket() string { return q.cfg.Namespace + "-control" }

func (q *Queue) jobsSubject(importID string) string       { return q.subject("jobs", importID) }
func (q *Queue) checkpointSubject(importID string) string { return q.subject("checkpoint", importID) }

// retryPointSubject is beside the checkpoint; no import ID has a = in it.
func (q *Queue) retryPointSubject(importID string) string {
	return q.subject("checkpoint", importID+"=retry")
}

func (q *Queue) resultSubject(importID, jobID string) string {
	return q.subject("results", importID, jobID)
}

func metadata() map[string]string {
	return map[string]string{schemaKey: strconv.Itoa(schema)}
}

// ensureTopology makes what is missing and checks what is there. It changes nothing that is there: an administrator may
// have given a stream replicas or placement, and that is none of our business.
func (q *Queue) ensureTopology(ctx context.Context) error {
	var err error
	q.jobs, err = q.ensureStream(ctx, jetstream.StreamConfig{
		Name:               q.jobsStream(),
		Description:        "groupferry: jobs to be done, and how far each import got onto the queue",
		Subjects:           []string{q.jobsSubject("*"), q.checkpointSubject("*")},
		Retention:          jetstream.LimitsPolicy,
		Discard:            jetstream.DiscardNew,
		Storage:            jetstream.FileStorage,
		Replicas:           q.cfg.Replicas,
		Duplicates:         duplicatesWindow,
		AllowRollup:        true,
		AllowDirect:        true,
		AllowAtomicPublish: true,
		Metadata:           metadata(),
	})
	if err != nil {
		return err
	}
	q.keeps = q.jobs.CachedInfo().Config.Retention == jetstream.LimitsPolicy
	q.results, err = q.ensureStream(ctx, jetstream.StreamConfig{
		Name:              q.resultsStream(),
		Description:       "groupferry: what became of each job",
		Subjects:          []string{q.resultSubject("*", "*")},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxMsgsPerSubject: 1,
		Storage:           jetstream.FileStorage,
		Replicas:          q.cfg.Replicas,
		Duplicates:        duplicatesWindow,
		AllowDirect:       true,
		// Results are faster with it, and as safe without: a stream of an older binary has none.
		AllowAtomicPublish: true,
		Metadata:           metadata(),
	})
	if err != nil {
		return err
	}
	if err := q.speedUpResults(ctx); err != nil {
		return err
	}
	q.batches = q.results.CachedInfo().Config.AllowAtomicPublish
	q.control, err = q.ensureBucket(ctx)
	return err
}

// speedUpResults lets the results stream of an older binary take results in groups, if the server is our own.
func (q *Queue) speedUpResults(ctx context.Context) error {
	cfg := q.results.CachedInfo().Config
	if cfg.AllowAtomicPublish || !q.cfg.embedded() {
		return nil
	}
	cfg.AllowAtomicPublish = true
	c, cancel := q.within(ctx)
	defer cancel()
	s, err := q.js.UpdateStream(c, cfg)
	if err != nil {
		return q.fault(ctx, "update stream "+cfg.Name, err)
	}
	q.results = s
	return nil
}

func (q *Queue) ensureStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	c, cancel := q.within(ctx)
	defer cancel()
	s, err := q.js.Stream(c, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if q.cfg.JoinOnly {
			return nil, fmt.Errorf("%w in namespace %s of %s", ErrNoData, q.cfg.Namespace, q.where)
		}
		s, err = q.js.CreateStream(c, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // someone else was quicker
			s, err = q.js.Stream(c, want.Name)
		}
	}
	if err != nil {
		return nil, q.topologyFault(ctx, "stream "+want.Name, err)
	}
	got := s.CachedInfo().Config
	if err := checkSchema("stream "+want.Name, got.Metadata); err != nil {
		return nil, err
	}
	if wrong := differences(got, want); len(wrong) > 0 {
		return nil, fmt.Errorf("stream %s on %s cannot be used, for jobs could be lost or doubled: %s; "+
			"mend it, or choose another namespace", want.Name, q.where, strings.Join(wrong, ", "))
	}
	return s, nil
}

func (q *Queue) ensureBucket(ctx context.Context) (jetstream.KeyValue, error) {
	c, cancel := q.within(ctx)
	defer cancel()
	name := q.controlBucket()
	kv, err := q.js.KeyValue(c, name)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if q.cfg.JoinOnly {
			return nil, fmt.Errorf("%w in namespace %s of %s", ErrNoData, q.cfg.Namespace, q.where)
		}
		kv, err = q.js.CreateKeyValue(c, jetstream.KeyValueConfig{
			Bucket:      name,
			Description: "groupferry: import records, and whether the fleet is halted",
			History:     1,
			Storage:     jetstream.FileStorage,
			Replicas:    q.cfg.Replicas,
			Metadata:    metadata(),
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = q.js.KeyValue(c, name)
		}
	}
	if err != nil {
		return nil, q.topologyFault(ctx, "bucket "+name, err)
	}
	status, err := kv.Status(c)
	if err != nil {
		return nil, q.topologyFault(ctx, "bucket "+name, err)
	}
	if status.TTL() != 0 {
		return nil, fmt.Errorf("bucket %s on %s cannot be used: its records expire after %s; "+
			"mend it, or choose another namespace", name, q.where, status.TTL())
	}
	return kv, checkSchema("bucket "+name, status.Metadata())
}

// topologyFault tells a server without JetStream, where nobody listens to a request, from one that does not answer it.
func (q *Queue) topologyFault(ctx context.Context, what string, err error) error {
	for _, target := range []error{
		nats.ErrNoResponders, jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount,
	} {
		if errors.Is(err, target) {
			return fmt.Errorf("%w at %s", ErrNoJetStream, q.where)
		}
	}
	return q.fault(ctx, what, err)
}

func checkSchema(what string, meta map[string]string) error {
	n, err := strconv.Atoi(meta[schemaKey])
	switch {
	case err != nil || n < 1:
		return fmt.Errorf("%s was not made by groupferry: choose another namespace", what)
	case n > schema:
		return fmt.Errorf("%s: schema %d, this binary knows %d: %w", what, n, schema, job.ErrVersion)
	}
	return nil
}

// differences lists the rules on which no job being lost or doubled rests, and which a stream does not keep.
func differences(got, want jetstream.StreamConfig) []string {
	var wrong []string
	differ := func(what string, got, want any) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s is %v instead of %v", what, got, want))
		}
	}
	if !want.AllowRollup || got.Retention != jetstream.WorkQueuePolicy { // the jobs stream of schema 1
		differ("retention", got.Retention, want.Retention)
	}
	differ("storage", got.Storage, want.Storage)
	differ("discard", got.Discard, want.Discard)
	differ("max messages per subject", max(got.MaxMsgsPerSubject, 0), want.MaxMsgsPerSubject)
	differ("max age", got.MaxAge, want.MaxAge)
	differ("atomic publish", got.AllowAtomicPublish || !want.AllowRollup, true)
	differ("rollup", got.AllowRollup || !want.AllowRollup, true)
	differ("direct get", got.AllowDirect, want.AllowDirect)
	slices.Sort(got.Subjects)
	slices.Sort(want.Subjects)
	if !slices.Equal(got.Subjects, want.Subjects) {
		wrong = append(wrong, fmt.Sprintf("subjects are %q instead of %q", got.Subjects, want.Subjects))
	}
	return wrong
}

// consumerPrefix makes a name that no file system takes for a device, such as con.
const consumerPrefix = "jobs-"

// consumerName names an import's consumer. The server keeps a directory of that name, and some file systems take May
// and may for the same one: a capital is written as = and the small letter, which no import ID holds otherwise.
func consumerName(importID string) string {
	var b strings.Builder
	b.WriteString(consumerPrefix)
	for i := range len(importID) {
		c := importID[i]
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('=')
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}

// importOf undoes consumerName; ok is false for a consumer that is none of ours.
func importOf(consumer string) (importID string, ok bool) {
	s, ok := strings.CutPrefix(consumer, consumerPrefix)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) || s[i] < 'a' || s[i] > 'z' {
			return "", false
		}
		b.WriteByte(s[i] - ('a' - 'A'))
	}
	return b.String(), job.ValidImportID(b.String())
}
