package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/governor"
	"groupferry/internal/queue"
)

func (p *program) workCommand() *cobra.Command {
	var api apiFlags
	var qf queueFlags
	var drain bool
	var address string
	var keep keepFlag
	cmd := &cobra.Command{
		Use:   "work",
		Short: "Make the calls of the jobs on the queue",
		Long: `work takes jobs from the queue, makes their calls and writes their results, until it
is stopped; with --drain, until the queue is empty. Of several workers one leads and
makes all calls; the others stand by and take over when it stops or dies.

When every job would fail the same way (a wrong key, an edition without groups) it
halts: it keeps the jobs, makes no more calls, is not ready, and continues after
'groupferry resume', also over restarts. A worker whose credentials have never
worked ends with code 4 instead. The first interrupt lets jobs in flight finish for
up to 30 seconds, the second leaves at once; neither loses anything.

` + exitCodes,
		Example: `  groupferry work --nats-url nats://queue:4222 --region singapore --sdk-app-id 1400000000 --secret-key-file key
  groupferry work --drain --region singapore --sdk-app-id 1400000000 --secret-key-file key`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			client, err := p.client(&api)
			if err != nil {
				return err
			}
			defer client.Close()
			listener, err := listen(address)
			if err != nil {
				return err
			}
			if listener != nil {
				defer listener.Close()
				p.console.log.Info("serving metrics and status", "url", "http://"+listener.Addr().String())
			}
			s, err := p.openWaiting(qf, drain)
			if errors.Is(err, errInterrupted) && !drain {
				return nil // stopped while it waited
			}
			if err != nil {
				return err
			}
			defer s.Close()
			resume := "groupferry resume" + qf.args(p.getenv)
			w, err := p.newWorkerProcess(s, client, &api, newMetrics(), processOptions{leaveOnHalt: drain, resume: resume})
			if err != nil {
				return err
			}
			if err := p.reportHalt(s); err != nil {
				return err
			}
			p.console.log.Info("working", "queue", s.Where(), "calls_per_second", api.rate)
			done := w.never
			if drain {
				done = w.drained
			}
			tidied := make(chan struct{})
			tidying, stopTidying := context.WithCancel(p.soft)
			go func() {
				defer close(tidied)
				p.tidyRepeatedly(tidying, s.Queue, keep)
			}()
			err = w.run(p.soft.Done(), listener, done)
			stopTidying()
			<-tidied
			switch {
			case governor.IsHalted(err):
				return &unfinishedError{err, resume + " && " + p.commandLine(), true}
			case err == nil && drain && p.soft.Err() != nil:
				return &unfinishedError{errInterrupted, p.commandLine(), false}
			}
			return err
		},
	}
	api.add(cmd)
	qf.add(cmd)
	cmd.Flags().BoolVar(&drain, "drain", false, "end when every job has its result")
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:9477", "`address` for metrics and status; off for none")
	keep.add(cmd)
	p.consoleFlags(cmd)
	return cmd
}

// reportHalt says that the namespace is halted or paused already.
func (p *program) reportHalt(s *app.Namespace) error {
	h, err := s.Halted(p.soft)
	if err == nil && h != nil {
		p.console.warn("%s: %s; to continue: %s", h.State, h.Reason, h.Command)
	}
	return err
}

// never shows how far the imports are; work without --drain does not end by itself.
func (w *workerProcess) never(ctx context.Context) (bool, error) {
	_, _, err := w.showOpen(ctx)
	return false, err
}

// enqueueQuiet is how long nothing is put on the queue for an import until work --drain takes its importer for gone.
const enqueueQuiet = 10 * time.Second

// drained reports whether nothing is left to do for any import, whoever did it. An import that is damaged can have no end:
// the error is about that, once all others are done.
func (w *workerProcess) drained(ctx context.Context) (bool, error) {
	left, damaged, err := w.showOpen(ctx)
	if err != nil || left > 0 {
		return false, err
	}
	if damaged == nil && w.abandonedAny() {
		return true, errIncomplete // which was said
	}
	return true, damaged
}

// showOpen draws the progress line of the imports that are not over, as if they were one, and counts them. Those that are
// damaged are left out, but for the error.
func (w *workerProcess) showOpen(ctx context.Context) (left int, damaged, err error) {
	open, err := w.store.OpenImports(ctx)
	if err != nil {
		return 0, nil, err
	}
	var all queue.Progress
	for _, id := range open {
		p, err := w.store.Progress(ctx, id)
		if errors.Is(err, queue.ErrNoImport) || err == nil && p.Import.State.Over() {
			delete(w.quiet, id)
			continue // its jobs are just being removed
		}
		if errors.As(err, new(*broker.DamagedError)) {
			damaged = err
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		if p.Pending+p.InFlight == 0 && w.abandoned(p) {
			continue
		}
		left++
		all.Pending += p.Pending
		all.InFlight += p.InFlight
		all.Rate += p.Rate
		all.Import.Jobs += p.Import.Jobs
		all.Counts.Jobs.Done += p.Counts.Jobs.Done
		all.Counts.Jobs.Partial += p.Counts.Jobs.Partial
		all.Counts.Jobs.Failed += p.Counts.Jobs.Failed
	}
	if left > 0 {
		w.showProgress(all)
	}
	return left, damaged, nil
}

// abandoned reports whether an import that is not on the queue as a whole has not got further for a while. It says so
// once: nobody can tell here whether its importer is gone or slow.
func (w *workerProcess) abandoned(p queue.Progress) bool {
	if p.Import.State != queue.Enqueueing && p.Import.State != queue.Retrying {
		delete(w.quiet, p.Import.ID)
		return false
	}
	was, known := w.quiet[p.Import.ID]
	if !known || was.jobs != p.Enqueued {
		w.quiet[p.Import.ID] = quietImport{jobs: p.Enqueued, since: time.Now()}
		return false
	}
	if time.Since(was.since) < enqueueQuiet {
		return false
	}
	if !was.reported {
		was.reported = true
		w.quiet[p.Import.ID] = was
		next := "import its files again"
		if p.Import.State == queue.Retrying {
			next = "groupferry retry " + p.Import.ID
		}
		w.p.console.warn("import %s is %s, and nothing comes any more; to continue: %s", p.Import.ID, p.Import.State, next)
	}
	return true
}

// abandonedAny reports whether an import was taken for abandoned.
func (w *workerProcess) abandonedAny() bool {
	for _, q := range w.quiet {
		if q.reported {
			return true
		}
	}
	return false
}

// A quietImport is how far an import was enqueued, since when.
type quietImport struct {
	jobs     int64
	since    time.Time
	reported bool
}

// tidyEvery is how often a worker looks for imports that are too old to be kept.
const tidyEvery = time.Hour

func (p *program) tidyRepeatedly(ctx context.Context, q *queue.Queue, keep keepFlag) {
	for {
		p.tidy(p.soft, q, keep) // what it has begun it ends, unless a signal comes
		if !sleepFor(ctx, tidyEvery) {
			return
		}
	}
}
