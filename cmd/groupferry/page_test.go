package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"groupferry/internal/broker"
	"groupferry/internal/chatsim"
	"groupferry/internal/queue"
)

const pageToken = "only-this-test-knows-it"

// writeToken writes the token of the page, and returns the name of the file.
func writeToken(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(pageToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// checkPage looks for complaints of the browser, but for those that are expected, and for IDs of users on the page.
func checkPage(b *browser, expected ...string) {
	b.t.Helper()
complaints:
	for _, c := range b.complaints() {
		for _, part := range expected {
			if strings.Contains(c, part) {
				continue complaints
			}
		}
		b.t.Errorf("the browser: %s", c)
	}
	html := b.run("return document.documentElement.outerHTML")
	for _, id := range []string{"friend-", "user-", "@TGS#", pageToken} {
		if strings.Contains(html, id) {
			b.t.Errorf("the page has %q", id)
		}
	}
}

// A person sees an import run, fail in part, halt and complete, and with the token pauses it, resumes it, sets the rate and
// retries what failed; a wrong token is said to be wrong.
func TestPageInBrowser(t *testing.T) {
	t.Parallel()
	b := startBrowser(t)
	sim, url := startSim(t, chatsim.Config{FailIDs: map[string]int{"friend-4": 50001}})
	s := newShell(t, url)
	s.env["GROUPFERRY_RATE"] = "40"
	sizes := make([]int, 600)
	for i := range sizes {
		sizes[i] = 1 + i%6
	}
	id := strings.TrimSpace(s.run(exitDone, "import", writeRows(t, makeRows(16, sizes...))).stdout.String())
	base := "http://" + freeAddress(t)
	w := s.start("work", "--listen", strings.TrimPrefix(base, "http://"), "--page-token-file", writeToken(t))
	await(t, "metrics", func() bool { return scrape(t, base+"/metrics") != nil })
	b.open(base + "/")
	b.await("#headline", "Running")
	b.await("#live .left", "of 600 jobs")
	b.await("#live .left", "left, until")
	b.await("#link", "live")
	b.await("#processes .leads", "leads, this one")
	b.await("#rate", "40")
	b.await("#rows", id)
	b.await("#codes", "import the account of that user")
	if b.text("#pause") != "" || b.text("#rate-form") != "" || b.text("#rows .retry") != "" {
		t.Error("there are buttons before the token is given")
	}

	b.write("#token", "a-wrong-token-of-some-length")
	b.click("#token-form button")
	b.await("#answer", "the token is wrong")
	if b.text("#token") == b.text("#pause") && b.run("return sessionStorage.length") != "0" {
		t.Error("a wrong token is kept")
	}
	b.write("#token", pageToken)
	b.click("#token-form button")
	b.await("#answer", "the token is right")

	b.click("#pause")
	b.await("#answer", "paused; to continue: groupferry resume")
	b.await("#headline", "Paused")
	b.await("#command", "groupferry resume")
	await(t, "calls under way to end", func() bool {
		return scrape(t, base+"/metrics")[`groupferry_permits_in_use{command="create_contact_group"}`] == 0
	})
	stopped := created(sim)
	b.await("#legend", "create_contact_group 0") // for five seconds
	if got := created(sim); got != stopped {
		t.Errorf("while it is paused: got %d calls, want none", got-stopped)
	}
	b.click("#resume")
	b.await("#headline", "Running")
	await(t, "calls to go on", func() bool { return created(sim) > stopped })

	// Twice the width of the smallest phones, and that of one: nothing sticks out.
	for _, width := range []int{760, 380} {
		b.resize(width)
		await(t, fmt.Sprintf("the page to fit into %d pixels", width), func() bool {
			return b.run(fmt.Sprintf("const e = document.documentElement; return innerWidth === %d && e.scrollWidth <= e.clientWidth", width)) == "true"
		})
	}
	b.resize(1200)

	b.write("#calls", "100000")
	b.click("#rate-form button")
	b.await("#answer", "at most 100000 calls a second")
	b.await("#rate", "100,000")
	b.await("#rate-note", "set by hand")
	b.await("#headline", "Idle")
	b.await("#rows tr .complete", "complete")
	b.await("#codes td:first-child", "50001")

	if err := sim.Configure(func(c *chatsim.Config) { c.FailIDs["friend-4"] = 0 }); err != nil {
		t.Fatal(err)
	}
	b.click("#rows .retry")
	b.await("#answer", "retry 1 of import "+id)
	b.await("#rows td:nth-child(5)", "0")
	await(t, "no failures", func() bool { return b.text("#failures") == "" && b.text("#rows .complete") != "" })
	checkPage(b, "401 (Unauthorized)")

	if err := sim.Configure(func(c *chatsim.Config) { c.Edition = chatsim.Standard }); err != nil {
		t.Fatal(err)
	}
	s.run(exitDone, "import", writeRows(t, makeRows(17, 2, 2, 2)))
	b.await("#headline", "Halted: 51013")
	b.await("#remedy", "upgrade the app")
	b.await("#command", "groupferry resume")
	b.await("#live .left", "0 of 3 jobs")
	checkPage(b)
	w.signals <- os.Interrupt
	w.wait(exitDone)
	b.await("#link", "ended, last seen")
	b.await("#headline", "Halted: 51013")
	if leak := leakIn(w.stdout.String()+w.stderr.String(), pageToken); leak != "" {
		t.Errorf("the output has %s", leak)
	}
}

// Whoever runs one file sees it read, and how it ended, also when the process has.
func TestPageOfARun(t *testing.T) {
	t.Parallel()
	b := startBrowser(t)
	_, url := startSim(t, chatsim.Config{})
	s := newShell(t, url)
	input, rows := io.Pipe()
	s.stdin = input
	base := "http://" + freeAddress(t)
	c := s.start("run", "--listen", strings.TrimPrefix(base, "http://"), "-")
	await(t, "the page", func() bool { return scrape(t, base+"/metrics") != nil })
	b.open(base + "/")
	b.await("#headline", "Reading the input")
	if b.text("#token-form") != "" {
		t.Error("it asks for a token, and has none")
	}
	checkPage(b)
	io.WriteString(rows, "from_account,group_name,type,to_account,to_group_id\nuser-1,Family,1,friend-1,\nuser-1,Family,1,friend-2,\n")
	rows.Close()
	c.wait(exitDone).wantErr("the page: " + base)
	b.await("#headline", "Done")
	b.await("#detail", "2 of 2 conversations are in their groups")
	b.await("#link", "ended, last seen")
	b.await("#rows .complete", "complete")
	b.await("#processes", "has ended")
}

// What a button does is done as the NATS user of the process: the answer says what that one may not, and what to do.
func TestPageOfANATSUser(t *testing.T) {
	t.Parallel()
	r := startRoleServer(t, rolesFile)
	input := writeRows(t, makeRows(18, 1))
	r.does("operator", exitDone, "import", input)
	r.does("operator", exitDone, "work", "--drain", "--listen", "off")
	base := "http://" + freeAddress(t)
	w := r.as(t, "worker").start("work", "--listen", strings.TrimPrefix(base, "http://"), "--page-token-file", writeToken(t))
	act := func(name, body string) (status int, text string) {
		request, err := http.NewRequest(http.MethodPost, base+"/actions/"+name, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Page-Token", pageToken)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, err.Error()
		}
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(b)
	}
	await(t, "the worker", func() bool {
		status, text := act("resume", "{}")
		return status == http.StatusOK && strings.Contains(text, "nothing was halted or paused")
	})
	if status, text := act("pause", "{}"); status != http.StatusOK || !strings.Contains(text, "to continue: groupferry resume") {
		t.Errorf("pause: got %d %s", status, text)
	}
	if denied := r.denied(); len(denied) > 0 {
		t.Errorf("pause and resume: denied %q", denied)
	}
	if status, text := act("rate", `{"calls":7}`); status != http.StatusConflict || !strings.Contains(text, "NATS denies it") ||
		!strings.Contains(text, "use another NATS user") || strings.Contains(text, rolePassword("worker")) {
		t.Errorf("rate: got %d %s, want that NATS denies it, and what to do", status, text)
	}
	w.signals <- os.Interrupt
	w.wait(exitDone)
}

// An action of which nobody knows whether it is done is not said to be undone.
func TestPageWithoutNATS(t *testing.T) {
	p := &program{}
	if a := p.failed(fmt.Errorf("set rate: %w: nats://here", broker.ErrUnreachable)); a.OK || !strings.Contains(a.Hint, "may be done all the same") {
		t.Errorf("got %+v, want that it may be done", a)
	}
	if a := p.failed(queue.ErrCancelled); a.OK || strings.Contains(a.Hint, "may be done") {
		t.Errorf("of another error: got %+v", a)
	}
}

// A token that cannot protect anything is refused, and so is one without a page; one that others can read is a warning.
func TestPageToken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := newShell(t, "http://127.0.0.1:1")
	work := []string{"work", "--drain", "--listen", "127.0.0.1:0", "--page-token-file"}
	s.run(exitUsage, append(work, file("empty", "\n", 0o600))...).wantErr("--page-token-file", "is empty")
	s.run(exitUsage, append(work, file("short", "fifteen-letters", 0o600))...).wantErr("has 15 characters, and needs at least 16", "openssl rand")
	s.run(exitUsage, append(work, file("unicode", "schlüssel-zum-glück", 0o600))...).wantErr("characters beyond ASCII", "openssl rand")
	s.run(exitUsage, append(work, file("lines", "one-line-of-it\nanother-line", 0o600))...).wantErr("more than one line", "openssl rand")
	s.run(exitUsage, append(work, filepath.Join(dir, "none"))...).wantErr("--page-token-file", "none")
	s.run(exitUsage, "run", "--page-token-file", file("good", pageToken, 0o600), "none.csv").wantErr("no page is served", "--listen 127.0.0.1:9477")
	open := s.run(exitFailed, append(work, file("open", pageToken, 0o644))...).wantErr("chmod 600", "no groupferry data")
	if leak := leakIn(open.stderr.String(), pageToken); leak != "" {
		t.Errorf("the output has %s", leak)
	}
}
