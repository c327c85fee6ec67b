package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"groupferry/internal/broker"
	"groupferry/internal/clock"
	"groupferry/internal/lease"
	"groupferry/internal/queue"
)

// nats opens the queue as an import does, and so makes the streams if they are not there.
func (d *doctor) nats(ctx context.Context) {
	cfg := d.cfg.Queue
	if cfg == nil {
		d.without("of the settings")
		d.skip("NATS", "of the settings")
		return
	}
	embedded := cfg.URL == "" && cfg.Context == ""
	if embedded && !d.directory("data directory", cfg.DataDir, d.cfg.Named("data-dir"), true) {
		d.without("the data directory cannot be used")
		d.skip("NATS", "the data directory cannot be used")
		return
	}
	n, err := connect(ctx, *cfg)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		d.without("NATS cannot be used: calls would count against no limit")
		d.add("NATS", Failed, err.Error(), d.natsRemedy(err))
		return
	}
	l, err := n.Conn.Limits(ctx)
	switch {
	case err != nil:
		d.add("NATS", Failed, err.Error(), d.natsRemedy(err))
	case embedded && !n.Conn.Embedded():
		d.ok("NATS", "%s, which another process runs: nats-server %s, JetStream", n.Where(), l.Version)
	default:
		d.ok("NATS", "%s: nats-server %s, JetStream", n.Where(), l.Version)
	}
	if !embedded {
		d.natsLimits(l)
		d.natsUser(ctx, n)
	}
	if err := n.openQueue(ctx); err != nil {
		d.without("the streams cannot be used")
		remedy := d.natsRemedy(err)
		switch {
		case strings.Contains(err.Error(), "maximum number of streams"):
			remedy = "allow the account more streams, or use another one: a namespace has five"
		case cfg.Replicas > 1 && strings.Contains(err.Error(), "replicas"):
			remedy = fmt.Sprintf("use a cluster of %d servers or more, or fewer %s", cfg.Replicas, d.cfg.Named("replicas"))
		}
		d.add("streams", Failed, err.Error(), remedy)
		return
	}
	d.ns = n
	have, want := n.Replicas(), n.Conn.Replicas()
	if have != want {
		d.add("streams", Warning, fmt.Sprintf("they are there with %d copies, not %d: %s counts only when they are made", have, want, d.cfg.Named("replicas")),
			fmt.Sprintf("nats stream edit %[1]s-jobs --replicas %[2]d, and likewise %[1]s-results, KV_%[1]s-control, KV_%[1]s-lease and OBJ_%[1]s-snapshots", n.Conn.Namespace(), want))
		return
	}
	d.ok("streams", "those of namespace %s are there, with %d %s", n.Conn.Namespace(), have, map[bool]string{true: "copy", false: "copies"}[have == 1])
}

// natsRemedy says what to do about an error of NATS.
func (d *doctor) natsRemedy(err error) string {
	if hint := d.cfg.Hint(err); hint != "" {
		return hint
	}
	url := d.cfg.Named("nats-url")
	switch {
	case errors.Is(err, broker.ErrTooOld):
		return "install nats-server 2.12 or newer, or name another one with " + url + "; without one, the embedded server is used"
	case errors.Is(err, broker.ErrNoJetStream):
		return "enable JetStream for the server and for the account of this user, or name another server with " + url
	case errors.Is(err, broker.ErrSchema):
		return "name another namespace with " + d.cfg.Named("namespace") + ", or use that version"
	case errors.Is(err, broker.ErrUnreachable):
		return "start it, or check " + url + " and the way there"
	}
	return "check " + url + ", " + d.cfg.Named("namespace") + " and the server"
}

// leastPayload is what a record of an import with many files takes, and far more than a job.
const leastPayload = 1 << 20

func (d *doctor) natsLimits(l broker.Limits) {
	const name = "NATS limits"
	what := fmt.Sprintf("max_payload %s", size(l.MaxPayload))
	left := int64(math.MaxInt64)
	switch {
	case !l.Known:
		what += "; the account's are not known, for this user may not ask"
	case l.Storage < 0:
		what += "; storage of the account: no limit"
	default:
		left = l.Storage - l.Used
		what += fmt.Sprintf("; storage of the account: %s left, for some %s rows", size(left), Count(max(0, left/bytesPerRow/1000*1000)))
	}
	switch {
	case l.MaxPayload < leastPayload:
		d.add(name, Failed, what+": a message may need 1 MiB", "set max_payload: 1MB in the configuration of the NATS server")
	case left < leastSpace:
		d.add(name, Failed, what, "give the account more storage: max_file in its jetstream block, or its JWT")
	case left < littleSpace:
		d.add(name, Warning, what, "give the account more storage: max_file in its jetstream block, or its JWT")
	default:
		d.add(name, Fine, what, "")
	}
}

// natsUser tries what the user may publish.
func (d *doctor) natsUser(ctx context.Context, n *Namespace) {
	const name = "NATS user"
	var may, mayNot []string
	can := map[string]bool{}
	var lacks []string
	for _, need := range queue.Needs(n.Conn) {
		denied, err := n.Conn.Denies(ctx, need.Subjects)
		if err != nil {
			d.add(name, Failed, err.Error(), d.natsRemedy(err))
			return
		}
		lacks = append(lacks, denied...)
		if can[need.Commands] = len(denied) == 0; can[need.Commands] {
			may = append(may, need.Commands)
		} else {
			mayNot = append(mayNot, need.Commands+" (denied: "+strings.Join(denied, ", ")+")")
		}
	}
	remedy := "allow the user to publish that, as deploy/nats/groupferry.conf does, or name another user in NATS_URL or NATS_CREDS"
	switch {
	case len(mayNot) == 0:
		d.ok(name, "may do all: %s", strings.Join(may, ", "))
	case !can["import"] && !can["work"]:
		d.add(name, Failed, "may neither import nor work: "+strings.Join(mayNot, "; "), remedy)
	default:
		d.add(name, Warning, "may "+strings.Join(may, ", ")+"; not "+strings.Join(mayNot, "; "), remedy)
	}
	leader, reader := n.Conn.LeaseSubject(broker.LeaderLease), n.Conn.LeaseSubject(broker.ReaderLease)
	if d.noLead = slices.Contains(lacks, leader); d.noLead && slices.Contains(lacks, reader) {
		d.without("this NATS user may not write the lease: calls would count against no limit")
	}
}

// namespace is about what earlier commands left.
func (d *doctor) namespace(ctx context.Context) {
	const name = "namespace"
	if d.ns == nil {
		d.skip(name, "NATS cannot be used")
		return
	}
	have, err := d.ns.App(ctx)
	var other error
	if err == nil && have != nil && *have != d.cfg.App && d.cfg.App.SDKAppID != 0 {
		other = &queue.OtherAppError{Want: d.cfg.App, Have: *have}
	}
	switch {
	case err != nil:
		d.add(name, Failed, err.Error(), d.natsRemedy(err))
	case other != nil:
		d.without("the namespace belongs to another app")
		d.add(name, Failed, other.Error(), d.cfg.Hint(other))
	case have == nil:
		d.ok(name, "%s: of no app yet", d.ns.Conn.Namespace())
	default:
		d.ok(name, "%s: of %v", d.ns.Conn.Namespace(), *have)
	}
	s, err := d.ns.Status(ctx)
	if err != nil {
		d.add("imports", Failed, err.Error(), d.natsRemedy(err))
		return
	}
	if h := s.Halt; h != nil {
		if h.State == queue.Paused {
			d.without("the namespace is paused")
		}
		remedy := d.ns.Conn.Command("resume")
		if h.State == queue.Halted {
			remedy = strings.TrimPrefix(h.Remedy+", then call '"+cmp.Or(h.Command, remedy)+"'", ", then ")
		}
		d.add("halt", Failed, (&StandingHalt{*h}).Error()+": no job is done", remedy)
	}
	if rate, err := d.ns.Rate(ctx); err == nil && rate > 0 {
		d.add("rate", Warning, fmt.Sprintf("%d calls a second are set for the namespace: they go before %s", rate, d.cfg.Named("rate")),
			d.ns.Conn.Command("rate", "0"))
	}
	var open []string
	for _, i := range s.Imports {
		if !i.Over() {
			open = append(open, fmt.Sprintf("%s (%s, %s jobs left)", i.Import, i.State, Count(i.Jobs.Pending)))
		}
	}
	switch {
	case s.Damaged != nil:
		d.add("imports", Failed, s.Damaged.Error(), d.natsRemedy(s.Damaged))
	case len(open) > 0:
		d.add("imports", Warning, "not over: "+strings.Join(open, ", "), "the next run or work continues them; '"+d.ns.Conn.Command("cancel", "IMPORT")+"' drops what has not started")
	case len(s.Imports) == 0:
		d.ok("imports", "there are none")
	default:
		d.ok("imports", "%s, all over", Count(int64(len(s.Imports))))
	}
	d.otherNamespaces(ctx)
}

// renewedBy is when a lease that somebody has is renewed, twice over.
const renewedBy = time.Second

// otherNamespaces looks for a leader of the same app in another namespace of the server: neither knows of the calls of the other.
func (d *doctor) otherNamespaces(ctx context.Context) {
	names, err := d.ns.Conn.Namespaces(ctx)
	if err != nil { // the user may not ask, and an operator keeps one namespace per app
		return
	}
	for _, name := range names {
		app, err := d.ns.AppOf(ctx, name)
		if name == d.ns.Conn.Namespace() || err != nil || app == nil || *app != d.cfg.App {
			continue
		}
		store := d.ns.Conn.LeaseOf(name, broker.LeaderLease)
		before, _, err := lease.Read(ctx, store)
		if err != nil || before.Term == 0 || before.Released || !clock.Pause(ctx, renewedBy) {
			continue
		}
		if now, _, err := lease.Read(ctx, store); err == nil && now.Renewal != before.Renewal {
			d.add("namespaces", Failed, fmt.Sprintf("%s leads in namespace %s, and makes calls for the same app: together they can exceed its limit", now.Host, name),
				"stop it, or use that namespace with "+d.cfg.Named("namespace"))
		}
	}
}
