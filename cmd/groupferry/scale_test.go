//go:build unix

package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/gocarina/gocsv"
	"github.com/klauspost/compress/zstd"

	"groupferry/importer"
	"groupferry/internal/app"
	"groupferry/internal/broker"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
	"groupferry/internal/job"
	"groupferry/internal/queue"
)

var (
	scale       = flag.Float64("scale", 0, "rows of the inputs that TestScale measures, such as 2e6; 0 leaves it out")
	scaleNights = flag.Int("scale.nights", 0, "groups of a sync whose nights TestNightsScale measures; 0 leaves it out")
	scaleRate   = flag.Int("scale.rate", 200, "--rate of TestNightsScale and TestReadScale: the vendor's limit")
	scaleBase   = flag.Int("scale.base", 0, "groups of the snapshot that TestSnapshotScale measures a night on; 0 leaves it out")
	scaleUsers  = flag.Int("scale.users", 0, "users whose groups TestReadScale exports and verifies; 0 leaves it out")
	scaleKinds  = flag.String("scale.kinds", "shuffled,sorted,half,jsonl,gzip,zstd", "inputs that it measures")
)

// Data as people have it: 20 conversations in a group and 10 groups of a user, and where half of all rows are of one
// user, as many groups as a user can have and a new conversation in each row.
const (
	scalePerGroup = 20
	scalePerUser  = 10
)

// TestScale measures whole processes on generated rows, and what their parts take by themselves:
//
//	go test ./cmd/groupferry -run TestScale -v -timeout 2h -scale 2e6
//
// CPU seconds count, for they mean something on a machine with other work; rss is the peak of the process, the embedded
// server included, and disk that of the directory for sorting. With GOMAXPROCS=1 in the environment all of them have one
// core. Each row of what it prints is one process:
//
//	parse    gocsv alone, row by row: the least that an import with it can take
//	publish  the same number of jobs of the same size put on an embedded queue, without an input
//	check    reading, checking, grouping
//	import   all of it
func TestScale(t *testing.T) {
	if *scale == 0 {
		t.Skip("-scale 2e6 measures 2 million rows")
	}
	rows := int(*scale)
	out := tabwriter.NewWriter(t.Output(), 0, 0, 2, ' ', 0)
	defer out.Flush()
	fmt.Fprintln(out, "rows\tinput\tprocess\tCPU s\tµs a row\twall s\trss MiB\tdisk MiB\tinput MiB\tratio\t")
	for _, kind := range strings.Split(*scaleKinds, ",") {
		dir := t.TempDir()
		name, mib := writeScale(t, filepath.Join(dir, kind), kind, rows)
		measure := func(process string, args ...string) float64 {
			spool, data := filepath.Join(dir, "spool"), filepath.Join(dir, "data")
			if err := os.Mkdir(spool, 0o700); err != nil {
				t.Fatal(err)
			}
			r := measured(t, spool, data, dir, process, args)
			if left := diskBytes(spool); left > 0 {
				t.Errorf("%s %s: %d bytes are left in %s", kind, process, left, spool)
			}
			for _, d := range []string{spool, data} {
				if err := os.RemoveAll(d); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Fprintf(out, "%d\t%s\t%s\t%.2f\t%.2f\t%.1f\t%d\t%d\t%d\t", rows, kind, process, r.cpu,
				r.cpu*1e6/float64(rows), r.wall, r.rss>>20, r.disk>>20, mib)
			return r.cpu
		}
		var parse float64
		if kind == "shuffled" || kind == "sorted" || kind == "half" {
			parse = measure("parse", name)
			fmt.Fprintln(out, "\t")
		}
		check := measure("check", "check", "--quiet", name)
		if parse > 0 {
			fmt.Fprintf(out, "%.2f × parse\t\n", check/parse)
		} else {
			fmt.Fprintln(out, "\t")
		}
		each := scalePerGroup
		if kind == "half" {
			each /= 2
		}
		publish := measure("publish", strconv.Itoa(rows/scalePerGroup), strconv.Itoa(each))
		fmt.Fprintln(out, "\t")
		full := measure("import", "import", "--quiet", name)
		if parse > 0 {
			fmt.Fprintf(out, "%.2f × (parse + publish)\t\n", full/(parse+publish))
		} else {
			fmt.Fprintln(out, "\t")
		}
		out.Flush()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

type spent struct {
	cpu, wall float64 // seconds
	rss, disk int64   // bytes, at their peaks
}

// measured runs one process: groupferry, or the one that scaleCommands has by its name.
func measured(t *testing.T, spool, data, dir, process string, args []string) spent {
	t.Helper()
	command := "groupferry"
	if scaleCommands[process] != nil {
		command = process
	}
	cmd := exec.Command(command, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GROUPFERRY_SPOOL_DIR="+spool, "GROUPFERRY_DATA_DIR="+data)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	done := make(chan struct{})
	var watching sync.WaitGroup
	var u spent
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watching.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				u.disk = max(u.disk, openBytes(cmd.Process.Pid, spool))
				u.rss = max(u.rss, peakMemory(cmd.Process.Pid))
			}
		}
	})
	err := cmd.Wait()
	u.wall = time.Since(start).Seconds()
	close(done)
	watching.Wait()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == exitIncomplete) {
		t.Fatalf("%s %v: %v\n%s", command, args, err, said.String())
	}
	u.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if r := cmd.ProcessState.SysUsage().(*syscall.Rusage); u.rss == 0 && runtime.GOOS == "darwin" {
		u.rss = int64(r.Maxrss)
	}
	return u
}

// peakMemory is the peak of a process's resident memory so far; 0 where the system does not tell. What Linux tells of a process
// that has ended is the peak of this one, if that is more: they share their memory until exec.
func peakMemory(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib int64
	fmt.Sscan(rest, &kib)
	return kib << 10
}

func diskBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil // what vanishes in between does not count
	})
	return n
}

// openBytes is the size of the files in dir that a process has open; they have no name any more. It is 0 where there is
// no /proc.
func openBytes(pid int, dir string) (n int64) {
	open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, dir) {
			if info, err := os.Stat(fd); err == nil {
				n += info.Size()
			}
		}
	}
	return n
}

// TestNightsScale measures the nights of a sync against a simulator in this process, which does not count:
//
//	go test ./cmd/groupferry -run TestNightsScale -v -timeout 1h -scale.nights 100000
//
// After the first one no night writes what did not change, and none takes more than 15 % of the CPU of the first, which
// makes its calls at the vendor's limit. Without a limit a call takes a third of the CPU, and the share is 35 % where the
// results of the first night are read, 16 % after that.
func TestNightsScale(t *testing.T) {
	if *scaleNights == 0 {
		t.Skip("-scale.nights 100000 measures so many groups")
	}
	sim, url := startSim(t, chatsim.Config{})
	setAPI(t, url)
	out := tabwriter.NewWriter(t.Output(), 0, 0, 2, ' ', 0)
	defer out.Flush()
	fmt.Fprintln(out, "night\tCPU s\tshare\twall s\trss MiB\twrites\t")
	dir := t.TempDir()
	data, spool := filepath.Join(dir, "data"), filepath.Join(dir, "spool")
	if err := os.Mkdir(spool, 0o700); err != nil {
		t.Fatal(err)
	}
	rows := *scaleNights * scalePerGroup
	shuffled, _ := writeScale(t, filepath.Join(dir, "shuffled"), "shuffled", rows)
	sorted, _ := writeScale(t, filepath.Join(dir, "sorted"), "sorted", rows)
	b, err := os.ReadFile(sorted)
	if err != nil {
		t.Fatal(err)
	}
	few := *scaleNights / 100
	for i := range few { // the first group of each tenth user
		b = fmt.Appendf(b, "user%d,Family,1,new,\n", i*10)
	}
	changed := filepath.Join(dir, "changed.csv")
	if err := os.WriteFile(changed, b, 0o600); err != nil {
		t.Fatal(err)
	}
	writes := func() int {
		l := sim.Ledger()
		return l.Commands[chat.CreateContactGroup].Calls + l.Commands[chat.UpdateContactGroup].Calls
	}
	var first float64
	for _, night := range []struct {
		name, file string
		writes     int // -1: as many as it takes
	}{{"first", shuffled, -1}, {"the same file", shuffled, 0}, {"the same rows", sorted, 0}, {"1 % changed", changed, few}, {"no new rows", sorted, 0}} {
		before := writes()
		r := measured(t, spool, data, dir, night.name, []string{"run", "--quiet", "--sync", "contacts", "--rate", strconv.Itoa(*scaleRate), night.file})
		if first == 0 {
			first = r.cpu
		}
		n := writes() - before
		fmt.Fprintf(out, "%s\t%.1f\t%.1f %%\t%.1f\t%d\t%d\t\n", night.name, r.cpu, 100*r.cpu/first, r.wall, r.rss>>20, n)
		out.Flush()
		if night.writes >= 0 && n != night.writes {
			t.Errorf("%s: got %d writes, want %d", night.name, n, night.writes)
		}
	}
}

// TestReadScale measures an export that is killed once, and a verification of what it wrote:
//
//	go test ./cmd/groupferry -run TestReadScale -v -timeout 2h -scale.users 100000 -scale.rate 200
func TestReadScale(t *testing.T) {
	if *scaleUsers == 0 {
		t.Skip("-scale.users 100000 measures so many users")
	}
	sim, url := startSim(t, chatsim.Config{Rate: -1})
	setAPI(t, url)
	dir := t.TempDir()
	data, spool := filepath.Join(dir, "data"), filepath.Join(dir, "spool")
	if err := os.Mkdir(spool, 0o700); err != nil {
		t.Fatal(err)
	}
	const perUser = 10
	input := []byte("from_account,group_name,type,to_account,to_group_id\n")
	for i := range *scaleUsers {
		for k := range perUser {
			input = fmt.Appendf(input, "user%d,group %d,1,friend%d,\n", i, k/5, k)
		}
	}
	file := filepath.Join(dir, "users.csv")
	if err := os.WriteFile(file, input, 0o600); err != nil {
		t.Fatal(err)
	}
	measured(t, spool, data, dir, "run", []string{"run", "--quiet", "--rate", "100000", file})
	gets := func() int { return sim.Ledger().Commands[chat.GetContactGroup].Calls }
	rate := []string{"--quiet", "--rate", strconv.Itoa(*scaleRate), file}
	export := append([]string{"export", "--to", filepath.Join(dir, "out.csv")}, rate...)

	before := gets()
	killed := exec.Command("groupferry", export...)
	killed.Env = append(os.Environ(), "GROUPFERRY_SPOOL_DIR="+spool, "GROUPFERRY_DATA_DIR="+data)
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	for gets() < before+*scaleUsers/4 {
		time.Sleep(10 * time.Millisecond)
	}
	killed.Process.Kill()
	killed.Wait()
	again := gets() - before
	out := tabwriter.NewWriter(t.Output(), 0, 0, 2, ' ', 0)
	defer out.Flush()
	fmt.Fprintln(out, "process\tcalls\twall s\tcalls/s\tCPU s\trss MiB\t")
	for _, p := range []struct {
		name string
		args []string
	}{{"the rest of the export", export}, {"verify", append([]string{"verify"}, rate...)}} {
		before := gets()
		r := measured(t, spool, data, dir, p.name, p.args)
		n := gets() - before
		fmt.Fprintf(out, "%s\t%d\t%.1f\t%.0f\t%.1f\t%d\t\n", p.name, n, r.wall, float64(n)/r.wall, r.cpu, r.rss>>20)
		again += n
	}
	t.Logf("read again after the kill: %d users", again-2**scaleUsers-3)
	got, err := os.ReadFile(filepath.Join(dir, "out.csv"))
	if err != nil {
		t.Fatal(err)
	}
	checkExport(t, got, *scaleUsers*perUser)
}

// TestSnapshotScale measures a second night on a snapshot that is made here, without an API, and the size of it on disk:
//
//	go test ./cmd/groupferry -run TestSnapshotScale -v -timeout 2h -scale.base 5000000 -scale.kinds sorted,shuffled
func TestSnapshotScale(t *testing.T) {
	if *scaleBase == 0 {
		t.Skip("-scale.base 5000000 measures a snapshot of so many groups")
	}
	setAPI(t, scaleAPI)
	dir := t.TempDir()
	data, spool := filepath.Join(dir, "data"), filepath.Join(dir, "spool")
	if err := os.Mkdir(spool, 0o700); err != nil {
		t.Fatal(err)
	}
	rows := *scaleBase * scalePerGroup
	out := tabwriter.NewWriter(t.Output(), 0, 0, 2, ' ', 0)
	defer out.Flush()
	fmt.Fprintln(out, "process\tCPU s\tµs a row\twall s\trss MiB\tspool MiB\tsnapshot MiB\t")
	report := func(name string, r spent) {
		fmt.Fprintf(out, "%s\t%.1f\t%.2f\t%.1f\t%d\t%d\t%d\t\n", name, r.cpu, r.cpu*1e6/float64(rows), r.wall, r.rss>>20, r.disk>>20,
			diskBytes(filepath.Join(data, "jetstream"))>>20)
		out.Flush()
	}
	report("snapshot", measured(t, spool, data, dir, "snapshot", []string{strconv.Itoa(*scaleBase)}))
	for _, kind := range strings.Split(*scaleKinds, ",") {
		file, _ := writeScale(t, filepath.Join(dir, kind), kind, rows)
		report(kind, measured(t, spool, data, dir, "night", []string{"import", "--quiet", "--sync", "contacts", file}))
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	q := openStore(t, broker.Config{DataDir: data})
	defer q.Close()
	all, err := q.Imports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Jobs > 0 || i.Unchanged != int64(rows) {
			t.Errorf("got %d jobs, %d conversations unchanged; want none and %d", i.Jobs, i.Unchanged, rows)
		}
	}
}

// setAPI says which API the processes call.
func setAPI(t *testing.T, url string) {
	t.Setenv("GROUPFERRY_API_URL", url)
	t.Setenv("GROUPFERRY_SDK_APP_ID", strconv.Itoa(chatsim.DemoSDKAppID))
	t.Setenv("GROUPFERRY_SECRET_KEY", testKey)
}

// scaleAPI is an address that nothing calls.
const scaleAPI = "http://127.0.0.1:9"

// scaleQueue opens the queue in the data directory.
func scaleQueue(ctx context.Context) (q *queue.Queue, closeQueue func()) {
	conn, err := broker.Open(ctx, broker.Config{DataDir: os.Getenv("GROUPFERRY_DATA_DIR")})
	if err != nil {
		panic(err)
	}
	if q, err = queue.Open(ctx, conn); err != nil {
		panic(err)
	}
	return q, func() { conn.Close() }
}

// scaleSnapshot stores a snapshot with the groups of the first rows of [writeScale].
func scaleSnapshot() {
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	q, closeQueue := scaleQueue(ctx)
	defer closeQueue()
	address, err := chat.Address(scaleAPI)
	if err != nil {
		panic(err)
	}
	s := queue.NewSync("contacts", app.Target(queue.App{SDKAppID: chatsim.DemoSDKAppID}, address))
	object, size, err := q.PutSnapshot(ctx, s, func(w io.Writer) error {
		_, err := importer.WriteSnapshot(w, func(yield func(importer.Group, error) bool) {
			for i := range n {
				g := importer.Group{FromAccount: fmt.Sprintf("user%d", i/scalePerUser), GroupName: scaleNames[i%scalePerUser]}
				if g.GroupName == `"Old, old"` { // as writeScale quotes it
					g.GroupName = `Old, "old"`
				}
				for k := range scalePerGroup {
					c := importer.GroupConversation{Type: job.OneToOne, ID: fmt.Sprintf("peer%d", i*scalePerGroup+k), State: importer.Applied}
					if (i*scalePerGroup+k)%7 == 0 {
						c.Type, c.ID = job.GroupChat, fmt.Sprintf("@TGS#%d", i*scalePerGroup+k)
					}
					g.Conversations = append(g.Conversations, c)
				}
				if !yield(g, nil) {
					return
				}
			}
		})
		return err
	})
	if err != nil {
		panic(err)
	}
	_, err = q.UpdateSync(ctx, s, func(s *queue.Sync) {
		s.Generation, s.Object, s.Size, s.Groups = 1, object, size, int64(n)
	})
	if err != nil {
		panic(err)
	}
}

// scaleCommands are the processes that the tests here compare with, and prepare with.
var scaleCommands = map[string]func(){"parse": scaleParse, "publish": scalePublish, "snapshot": scaleSnapshot}

// scaleParse is the loop over gocsv.
func scaleParse() {
	f, err := os.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	r := csv.NewReader(bufio.NewReaderSize(f, 128<<10))
	r.ReuseRecord = true
	rows, err := gocsv.NewUnmarshaller(r, &struct {
		From  string `csv:"from_account"`
		Group string `csv:"group_name"`
		Type  string `csv:"type"`
		User  string `csv:"to_account"`
		Chat  string `csv:"to_group_id"`
	}{})
	for err == nil {
		_, err = rows.Read()
	}
	if err != io.EOF {
		panic(err)
	}
}

// scalePublish puts so many jobs on a queue, each with so many conversations, that differ in little but their ids. Ids and
// lines have as many digits as those in the middle of the input that as many jobs come from.
func scalePublish() {
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	each, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	q, closeQueue := scaleQueue(ctx)
	defer closeQueue()
	j := job.Job{
		Import: "scale", FromAccount: fmt.Sprintf("user%d", n/scalePerUser/2), GroupName: "Family 12",
	}
	for i := range each {
		middle := n*scalePerGroup/2 + i
		j.Conversations = append(j.Conversations,
			job.Conversation{Type: job.OneToOne, ID: fmt.Sprintf("peer%d", middle), Line: int64(middle)})
	}
	if _, _, err := q.Begin(ctx, queue.Import{ID: j.Import, Digest: j.Import, Jobs: int64(n)}); err != nil {
		panic(err)
	}
	_, err = q.Enqueue(ctx, j.Import, func(yield func(job.Job) bool) {
		for i := range n {
			j.ID = strconv.Itoa(i)
			if !yield(j) {
				return
			}
		}
	}, nil)
	if err != nil {
		panic(err)
	}
}

// writeScale writes an input of so many rows and returns its name and size in MiB.
func writeScale(t *testing.T, name, kind string, rows int) (string, int64) {
	t.Helper()
	name += map[string]string{"jsonl": ".jsonl", "gzip": ".csv.gz", "zstd": ".csv.zst"}[kind]
	if filepath.Ext(name) == "" {
		name += ".csv"
	}
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var dst io.Writer = f
	var packed io.WriteCloser
	switch kind {
	case "gzip":
		packed, err = gzip.NewWriterLevel(f, gzip.BestSpeed)
	case "zstd":
		packed, err = zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest))
	}
	if err != nil {
		t.Fatal(err)
	}
	if packed != nil {
		dst = packed
	}
	w := bufio.NewWriterSize(dst, 1<<20)
	if kind != "jsonl" {
		w.WriteString("from_account,group_name,type,to_account,to_group_id\n")
	}
	names := scaleNames
	for i := range rows {
		n := i
		if kind != "sorted" {
			n = permute(i, rows)
		}
		user, group, id := n/scalePerGroup/scalePerUser, n/scalePerGroup%scalePerUser, n
		whale := kind == "half" && n%2 == 0
		switch {
		case kind == "jsonl" && n%7 == 0:
			fmt.Fprintf(w, `{"from_account":"user%d","group_name":%q,"type":2,"to_group_id":"@TGS#%d"}`+"\n", user, names[group], id)
		case kind == "jsonl":
			fmt.Fprintf(w, `{"from_account":"user%d","group_name":%q,"type":1,"to_account":"peer%d"}`+"\n", user, names[group], id)
		case whale:
			fmt.Fprintf(w, "whale,group%d,1,peer%d,\n", n/2%20, id)
		case n%7 == 0:
			fmt.Fprintf(w, "user%d,%s,2,,@TGS#%d\n", user, strings.ReplaceAll(names[group], `"Old, old"`, `"Old, ""old"""`), id)
		default:
			fmt.Fprintf(w, "user%d,%s,1,peer%d,\n", user, strings.ReplaceAll(names[group], `"Old, old"`, `"Old, ""old"""`), id)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if packed != nil {
		if err := packed.Close(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return name, info.Size() >> 20
}

// scaleNames are those of the groups of a user.
var scaleNames = []string{"Family", "家族", "Work", "Друзья", "Book club", "Neighbours", "أصدقاء", "Team", "Travel", `"Old, old"`}

// permute gives each number below n another one below n, in no order, without holding any: a few steps that can each be
// undone scramble the numbers of so many bits, and one that is too large is scrambled again.
func permute(i, n int) int {
	width := bits.Len(uint(n - 1))
	mask := uint64(1)<<width - 1
	x := uint64(i)
	for {
		for range 3 {
			x = x * 0x9e3779b97f4a7c15 & mask
			x ^= x >> (width/2 + 1)
		}
		if x < uint64(n) {
			return int(x)
		}
	}
}
