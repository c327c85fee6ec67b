package queue

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"groupferry/internal/broker"
)

const testTarget = "SDKAppID 1, https://api"

// put changes the record of a sync, or fails the test.
func put(t testing.TB, q *Queue, s Sync, change func(*Sync)) Sync {
	t.Helper()
	s, err := q.UpdateSync(t.Context(), s, change)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// night begins a night of the sync contacts, whose import has that ID, as the next one.
func night(t testing.TB, q *Queue, s Sync, id string) Sync {
	t.Helper()
	s = put(t, q, s, func(s *Sync) {
		s.Night++
		s.Generation++
		s.Pending = &Night{Number: s.Night, Import: id, Digest: "d", Base: s.Generation, Rows: 7}
	})
	if _, existed, err := q.Begin(t.Context(), nightImport(s)); err != nil || existed {
		t.Fatalf("begin: existed %t, %v", existed, err)
	}
	return s
}

// queuedNight is a night with so many jobs of two conversations on the queue.
func queuedNight(t testing.TB, q *Queue, s Sync, id string, jobs int) Sync {
	t.Helper()
	s = night(t, q, s, id)
	if _, err := q.Enqueue(t.Context(), id, numberedJobs(id, jobs, 2), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// nightImport is the record of the pending night, as it is begun.
func nightImport(s Sync) Import {
	return Import{ID: s.Pending.Import, Digest: s.Pending.Digest, Sync: s.Name, Night: s.Pending.Number, Target: s.Target}
}

// completeNight makes a night complete that has so many jobs, all done.
func completeNight(t testing.TB, q *Queue, id string, jobs int) *handWriter {
	t.Helper()
	if _, err := q.Enqueue(t.Context(), id, testJobs(id, jobs), nil); err != nil {
		t.Fatal(err)
	}
	h := &handWriter{q: q, rec: record(t, q, id)}
	for n := range jobs {
		h.write(t, testResult(id, n, []string{"", "51007"}[n%2]))
	}
	h.complete(t)
	return h
}

func TestUpdateSync(t *testing.T) {
	q := openQueue(t)
	if _, err := q.Sync(t.Context(), "contacts", testTarget); !errors.Is(err, ErrNoSync) {
		t.Errorf("got %v, want ErrNoSync", err)
	}
	for _, name := range []string{"", "a.b", "a b", strings.Repeat("x", MaxSyncName+1)} {
		if _, err := q.Sync(t.Context(), name, testTarget); err == nil || errors.Is(err, ErrNoSync) {
			t.Errorf("name %q: got %v", name, err)
		}
	}
	begun := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	first := put(t, q, NewSync("contacts", testTarget), func(s *Sync) {
		s.Night, s.Generation = 1, 1
		s.Pending = &Night{Number: 1, Import: "i1", Digest: "d", Base: 1, Rows: 3, Begun: begun}
	})
	other := put(t, q, NewSync("contacts", "simulated"), func(s *Sync) { s.Unchanged = 2 })
	got, err := q.Sync(t.Context(), "contacts", testTarget)
	if err != nil || got.Pending == nil || *got.Pending != *first.Pending || got.Night != 1 || got.Generation != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	if all, err := q.Syncs(t.Context()); err != nil || len(all) != 2 || all[0].Target == all[1].Target {
		t.Errorf("syncs: got %+v, %v", all, err)
	}
	// What no plan rests on does no harm to one that read the record before.
	put(t, q, first, func(s *Sync) { s.Complete = &Night{Number: 1, Import: "i1"} })
	second := put(t, q, first, func(s *Sync) { s.Confirmed = begun })
	if second.Complete == nil || second.Confirmed != begun || second.Pending.Import != "i1" {
		t.Errorf("got %+v, want both changes", second)
	}
	move := func(s *Sync) { s.Night, s.Pending = 2, &Night{Number: 2, Import: "i2"} }
	put(t, q, first, move)
	for _, late := range []Sync{first, NewSync("contacts", testTarget)} {
		if _, err := q.UpdateSync(t.Context(), late, move); !errors.Is(err, ErrSyncChanged) {
			t.Errorf("late: got %v, want ErrSyncChanged", err)
		}
	}
	if got, err := q.Sync(t.Context(), "contacts", "simulated"); err != nil || got.Unchanged != 2 || got.revision != other.revision {
		t.Errorf("the other target: got %+v, %v", got, err)
	}
	if first.Complete != nil {
		t.Error("an update changed what was read")
	}
}

// Two processes, and more, move a sync on at once: one does.
func TestUpdateSyncRace(t *testing.T) {
	q := openQueue(t)
	s := NewSync("contacts", testTarget)
	for round := range 5 {
		var moved atomic.Int64
		var all sync.WaitGroup
		for n := range 4 {
			all.Go(func() {
				_, err := q.UpdateSync(t.Context(), s, func(s *Sync) {
					s.Night++
					s.Pending = &Night{Number: s.Night, Import: fmt.Sprint("i", n)}
				})
				if err == nil {
					moved.Add(1)
				} else if !errors.Is(err, ErrSyncChanged) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		var err error
		if s, err = q.Sync(t.Context(), "contacts", testTarget); err != nil || s.Night != round+1 || moved.Load() != 1 {
			t.Fatalf("round %d: got night %d, %v, and %d that moved it", round, s.Night, err, moved.Load())
		}
	}
}

func TestWatchSyncs(t *testing.T) {
	q := openQueue(t)
	s := put(t, q, NewSync("contacts", testTarget), func(s *Sync) { s.Night = 1 })
	if _, err := q.control.Put(t.Context(), syncPrefix+syncID("new", testTarget), []byte(`{"v":99}`)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan Sync, 10)
	done := make(chan error, 1)
	go func() { done <- q.Watch(ctx, Watcher{Sync: func(s Sync) { seen <- s }}) }()
	if got := <-seen; got.Name != "contacts" || got.Night != 1 {
		t.Errorf("got %+v", got)
	}
	put(t, q, s, func(s *Sync) { s.Night = 2 })
	put(t, q, NewSync("other", testTarget), func(s *Sync) { s.Night = 3 })
	for _, want := range []int{2, 3} {
		if got := <-seen; got.Night != want {
			t.Errorf("got %+v, want night %d", got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// bytesFrom gives n bytes, the same ones for the same seed.
func bytesFrom(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

func writeAll(b []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		for part := range slices.Chunk(b, 100_000) { // that are no divisors of a chunk
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		return nil
	}
}

// putSnapshot stores a snapshot and makes it that of the sync.
func putSnapshot(t testing.TB, q *Queue, s Sync, b []byte) Sync {
	t.Helper()
	object, size, err := q.PutSnapshot(t.Context(), s, writeAll(b))
	if err != nil || size != int64(len(b)) {
		t.Fatalf("got %d bytes, %v, want %d", size, err, len(b))
	}
	return put(t, q, s, func(s *Sync) {
		s.Generation++
		s.Object, s.Previous, s.Size = object, s.Object, size
	})
}

func readSnapshot(t testing.TB, q *Queue, object string) ([]byte, error) {
	t.Helper()
	r, err := q.OpenSnapshot(t.Context(), object)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func objects(t testing.TB, q *Queue) []string {
	t.Helper()
	s, err := q.conn.StreamState(t.Context(), q.snapshotStream(), ">")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for subject := range s.Subjects {
		if rest, ok := strings.CutPrefix(subject, q.chunkSubject("")); ok {
			object, _, _ := objectOf(rest)
			names = append(names, object)
			if s.Subjects[q.metaSubject(object)] == 0 {
				names = append(names, "only chunks of "+object)
			}
		}
	}
	slices.Sort(names)
	return names
}

func TestSnapshot(t *testing.T) {
	q := openQueue(t)
	s := NewSync("contacts", testTarget)
	if _, err := q.OpenSnapshot(t.Context(), "contacts.x/1.y"); !errors.Is(err, ErrSnapshot) {
		t.Errorf("no object store: got %v, want ErrSnapshot", err)
	}
	if err := q.DeleteSnapshots(t.Context(), s); err != nil {
		t.Errorf("delete without an object store: %v", err)
	}
	if _, err := q.js.Stream(t.Context(), q.snapshotStream()); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("got %v: the object store was made before it is needed", err)
	}
	want := bytesFrom(1, 10*snapshotChunk+1234)
	s = putSnapshot(t, q, s, want)
	if got, err := readSnapshot(t, q, s.Object); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(want))
	}
	for _, n := range []int{1, snapshotChunk, 2 * snapshotChunk} {
		b := bytesFrom(uint64(n), n)
		s := putSnapshot(t, q, NewSync(fmt.Sprint("s", n), testTarget), b)
		if got, err := readSnapshot(t, q, s.Object); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
	}
	if _, _, err := q.PutSnapshot(t.Context(), s, func(io.Writer) error { return nil }); err == nil {
		t.Error("an empty snapshot: no error")
	}
	if _, err := q.OpenSnapshot(t.Context(), s.Object+"x"); !errors.Is(err, ErrSnapshot) {
		t.Errorf("no object: got %v, want ErrSnapshot", err)
	}
	// It is an object that other tools read.
	store, err := q.js.ObjectStore(t.Context(), q.snapshotBucket())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetBytes(t.Context(), s.Object); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the library: got %d bytes, %v", len(got), err)
	}
	// A process that only looks reads it, and makes no store.
	look, err := broker.Open(t.Context(), broker.Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer look.Close()
	empty, err := Open(t.Context(), look)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.OpenSnapshot(t.Context(), s.Object); !errors.Is(err, ErrSnapshot) {
		t.Errorf("another server: got %v, want ErrSnapshot", err)
	}
}

// A snapshot of which something is gone, or is something else, is never taken for whole.
func TestSnapshotDamaged(t *testing.T) {
	q := openQueue(t)
	want := bytesFrom(1, 20*snapshotChunk+5)
	first := putSnapshot(t, q, NewSync("contacts", testTarget), want)
	stream, err := q.js.Stream(t.Context(), q.snapshotStream())
	if err != nil {
		t.Fatal(err)
	}
	chunk := func(object string, n uint64) uint64 {
		m, err := q.conn.NextMsg(t.Context(), q.snapshotStream(), 1, q.chunkSubject(object))
		if err != nil {
			t.Fatal(err)
		}
		return m.Sequence + n
	}
	for name, damage := range map[string]func(object string) error{
		"first chunk gone":  func(o string) error { return stream.DeleteMsg(t.Context(), chunk(o, 0)) },
		"middle chunk gone": func(o string) error { return stream.DeleteMsg(t.Context(), chunk(o, 9)) },
		"last chunk gone":   func(o string) error { return stream.DeleteMsg(t.Context(), chunk(o, 20)) },
		"all chunks gone": func(o string) error {
			return stream.Purge(t.Context(), jetstream.WithPurgeSubject(q.chunkSubject(o)))
		},
		"description gone": func(o string) error {
			return stream.Purge(t.Context(), jetstream.WithPurgeSubject(q.metaSubject(o)))
		},
		"a chunk more in the place of one": func(o string) error {
			if err := stream.DeleteMsg(t.Context(), chunk(o, 20)); err != nil {
				return err
			}
			_, err := q.js.PublishMsg(t.Context(), &nats.Msg{Subject: q.chunkSubject(o), Data: []byte("12345")})
			return err
		},
		"deleted by a tool": func(o string) error {
			store, err := q.js.ObjectStore(t.Context(), q.snapshotBucket())
			if err != nil {
				return err
			}
			return store.Delete(t.Context(), o)
		},
	} {
		s := putSnapshot(t, q, first, want)
		if err := damage(s.Object); err != nil {
			t.Fatal(err)
		}
		if _, err := readSnapshot(t, q, s.Object); !errors.Is(err, ErrSnapshot) || errors.Is(err, broker.ErrUnreachable) {
			t.Errorf("%s: got %v, want ErrSnapshot", name, err)
		}
		first = s
	}
}

// What a writer left, whether it stopped or was killed, is deleted when the generation has come; never what a record names,
// or may be going to name.
func TestDeleteSnapshots(t *testing.T) {
	q := openQueue(t)
	b := bytesFrom(1, 3*snapshotChunk)
	other := putSnapshot(t, q, NewSync("other", testTarget), b)
	simulated := putSnapshot(t, q, NewSync("contacts", "simulated"), b)
	s := NewSync("contacts", testTarget)
	stop := errors.New("stop")
	if _, _, err := q.PutSnapshot(t.Context(), s, func(w io.Writer) error {
		_, err := w.Write(b)
		return errors.Join(err, stop)
	}); !errors.Is(err, stop) {
		t.Errorf("got %v, want the writer's error", err)
	}
	if got := objects(t, q); len(got) != 2 {
		t.Errorf("after a writer failed: got %q, want two objects", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, _, err := q.PutSnapshot(ctx, s, func(w io.Writer) error {
		_, err := w.Write(b)
		cancel()
		return errors.Join(err, ctx.Err())
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
	if got := objects(t, q); len(got) != 4 { // as after a kill
		t.Fatalf("got %q, want chunks that are left", got)
	}
	var kept []string
	for range 3 {
		s = putSnapshot(t, q, s, b)
		kept = append(kept, s.Object)
	}
	next, _, err := q.PutSnapshot(t.Context(), s, writeAll(b)) // of a process that comes after this one
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := q.DeleteSnapshots(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		want := []string{kept[1], kept[2], next, other.Object, simulated.Object}
		slices.Sort(want)
		if got := objects(t, q); !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	if got, err := readSnapshot(t, q, next); err != nil || !bytes.Equal(got, b) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// Two syncs write at once, and each message is there once.
func TestSnapshotsAtOnce(t *testing.T) {
	q := openQueue(t)
	var all sync.WaitGroup
	for n := range 3 {
		all.Go(func() {
			b := bytesFrom(uint64(n), 12*snapshotChunk)
			object, _, err := q.PutSnapshot(t.Context(), NewSync(fmt.Sprint("s", n), testTarget), writeAll(b))
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := readSnapshot(t, q, object); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: got %d bytes, %v", object, len(got), err)
			}
		})
	}
	all.Wait()
}

// With a server that is gone, both directions end with an error that says so, and never with a short snapshot.
func TestSnapshotUnreachable(t *testing.T) {
	dir := t.TempDir()
	server, err := broker.Open(t.Context(), broker.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	s := putSnapshot(t, q, NewSync("contacts", testTarget), bytesFrom(1, 20*snapshotChunk))
	r, err := q.OpenSnapshot(t.Context(), s.Object)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, _, err = q.PutSnapshot(t.Context(), s, func(w io.Writer) error {
		server.Close()
		_, err := w.Write(bytesFrom(2, snapshotChunk))
		return err
	})
	if !errors.Is(err, broker.ErrUnreachable) {
		t.Errorf("put: got %v, want ErrUnreachable", err)
	}
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, broker.ErrUnreachable) || errors.Is(err, ErrSnapshot) {
		t.Errorf("read: got %v, want ErrUnreachable", err)
	}
	if _, err := q.OpenSnapshot(t.Context(), s.Object); !errors.Is(err, broker.ErrUnreachable) {
		t.Errorf("open: got %v, want ErrUnreachable", err)
	}
}

// A hashWriter is what a large snapshot is compared by.
type hashWriter struct{ hash.Hash }

// BenchmarkSnapshot writes and reads 300 MB; watch its memory from outside, or by -benchmem.
func BenchmarkSnapshot(b *testing.B) {
	q := openQueue(b)
	part := bytesFrom(1, 1<<20)
	for b.Loop() {
		sum := hashWriter{sha256.New()}
		object, _, err := q.PutSnapshot(b.Context(), NewSync("contacts", testTarget), func(w io.Writer) error {
			for range 300 {
				sum.Write(part)
				if _, err := w.Write(part); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		r, err := q.OpenSnapshot(b.Context(), object)
		if err != nil {
			b.Fatal(err)
		}
		got := hashWriter{sha256.New()}
		if _, err := io.Copy(got, r); err != nil {
			b.Fatal(err)
		}
		if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
			b.Fatal("it is not what was written")
		}
		b.SetBytes(600 << 20)
	}
}

func fastLocks(q *Queue) {
	q.lockTimes = lockTimes{renew: 50 * time.Millisecond, poll: 10 * time.Millisecond, stale: 500 * time.Millisecond}
}

func TestLockSync(t *testing.T) {
	q := openQueue(t)
	fastLocks(q)
	first, err := q.LockSync(t.Context(), "contacts", "host-a, process 1", nil)
	if err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	if _, err := q.LockSync(t.Context(), "contacts", "host-b", nil); !errors.As(err, &locked) ||
		locked.Holder != "host-a, process 1" || locked.Since.IsZero() || !strings.Contains(err.Error(), "host-a, process 1") {
		t.Fatalf("got %v, want a LockedError that says who", err)
	}
	other, err := q.LockSync(t.Context(), "other", "host-b", nil)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan *LockedError, 10)
	got := make(chan *SyncLock)
	go func() {
		l, err := q.LockSync(t.Context(), "contacts", "host-b", func(e *LockedError) { told <- e })
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	if e := <-told; e.Holder != "host-a, process 1" {
		t.Errorf("got %+v", e)
	}
	for range 2 {
		if err := first.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	second := <-got
	if len(told) > 0 || second.Context().Err() != nil || first.Context().Err() == nil {
		t.Errorf("%d more calls, %v, %v", len(told), second.Context().Err(), first.Context().Err())
	}
	for _, l := range []*SyncLock{second, other} {
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	held, err := q.LockSync(ctx, "contacts", "host-a", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release(t.Context())
	_, err = q.LockSync(ctx, "contacts", "host-b", func(*LockedError) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

// A lock whose holder does not renew it is taken over, by one of those that wait; a holder that comes back learns of it.
func TestLockTakenOver(t *testing.T) {
	q := openQueue(t)
	fastLocks(q)
	q.lockTimes.renew = time.Hour
	dead, err := q.LockSync(t.Context(), "contacts", "dead", nil)
	if err != nil {
		t.Fatal(err)
	}
	fastLocks(q)
	// Without waiting, too: nobody renews it.
	next, err := q.LockSync(t.Context(), "contacts", "next", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.renew(t.Context()); !errors.Is(err, ErrLockLost) {
		t.Errorf("got %v, want ErrLockLost", err)
	}
	if err := dead.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := q.LockSync(t.Context(), "contacts", "late", nil); err == nil {
		t.Error("who has lost a lock released that of another one")
	}
	// And by itself.
	if _, err := q.control.Put(t.Context(), lockPrefix+"contacts", []byte(`{"v":1,"holder":"thief","token":"x"}`)); err != nil {
		t.Fatal(err)
	}
	<-next.Context().Done()
	if err := context.Cause(next.Context()); !errors.Is(err, ErrLockLost) {
		t.Errorf("got %v, want ErrLockLost", err)
	}
	if err := next.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

// Of many that want a lock one has it at a time.
func TestLockOneAtATime(t *testing.T) {
	q := openQueue(t)
	fastLocks(q)
	q.lockTimes.stale = time.Minute
	var inside atomic.Int64
	var all sync.WaitGroup
	for n := range 5 {
		all.Go(func() {
			l, err := q.LockSync(t.Context(), "contacts", fmt.Sprint(n), func(*LockedError) {})
			if err != nil {
				t.Error(err)
				return
			}
			if inside.Add(1) != 1 {
				t.Error("two have it")
			}
			if err := l.renew(t.Context()); err != nil {
				t.Error(err)
			}
			inside.Add(-1)
			if err := l.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
