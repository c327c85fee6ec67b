package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"groupferry/internal/app"
	"groupferry/internal/chat"
	"groupferry/internal/chatsim"
)

// openTerminal returns both sides of a terminal: what is printed to one can be read from the other.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { screen.Close() })
	var number, unlocked int32
	for request, value := range map[uintptr]*int32{syscall.TIOCGPTN: &number, syscall.TIOCSPTLCK: &unlocked} {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, screen.Fd(), request, uintptr(unsafe.Pointer(value))); e != 0 {
			t.Skip(e)
		}
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return screen, terminal
}

// setSize gives a terminal a size in columns and rows.
func setSize(t *testing.T, screen *os.File, width, height uint16) {
	t.Helper()
	size := [4]uint16{height, width}
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, screen.Fd(), syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size))); e != 0 {
		t.Fatal(e)
	}
}

// readScreen returns what is printed to a terminal from now on.
func readScreen(screen *os.File) *buffer {
	var shown buffer
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := screen.Read(b)
			if err != nil {
				return
			}
			shown.Write(b[:n])
		}
	}()
	return &shown
}

// drawn are the progress lines in what a terminal was sent, without colors.
func drawn(shown string) (lines []string) {
	for _, part := range strings.Split(shown, "\x1b[?7l")[1:] {
		line, _, whole := strings.Cut(part, "\x1b[K\x1b[?7h")
		if whole {
			lines = append(lines, plainText(line))
		}
	}
	return lines
}

// At a terminal progress is a line that fits the window, also after that has another size, and that says at the first
// interrupt what is waited for, as long as there is something. Here the API never responds to one of the calls.
func TestInterruptAtTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("CI", "")
	screen, terminal := openTerminal(t)
	setSize(t, screen, 80, 24)
	shown := readScreen(screen)
	_, url := startSim(t, chatsim.Config{Faults: []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: chatsim.Hang, After: 20, For: 1}}})
	s := newShell(t, url)
	s.stderr = terminal
	var rows []row
	for i := range 40 {
		rows = append(rows, row{fmt.Sprint("user-", i), "g", chat.Item{Type: chat.OneToOne, ID: "friend"}})
	}
	c := s.start("run", "--timeout", "10m", writeRows(t, rows))
	last := func() string {
		lines := append([]string{""}, drawn(shown.String())...)
		return lines[len(lines)-1]
	}
	at := func(text string, width int) {
		t.Helper()
		await(t, text, func() bool { return strings.Contains(last(), text) && columns(last()) <= width-3 })
	}
	at("  97%  39 of 40 jobs  ", 80)
	setSize(t, screen, 40, 24)
	at("  97%  ", 40)
	setSize(t, screen, 60, 24)
	c.signals <- os.Interrupt
	at("stopping: 1 job, Ctrl-C again to leave", 60)
	setSize(t, screen, 80, 24)
	at("stopping: waiting for 1 job, Ctrl-C again to leave now", 80)
	c.signals <- os.Interrupt
	c.wait(exitInterrupted)
}

// What a terminal shows is asked each time; the environment can say that it shows less.
func TestLook(t *testing.T) {
	screen, terminal := openTerminal(t)
	for _, test := range []struct {
		env  string
		size [2]uint16
		want look
	}{
		{"", [2]uint16{100, 30}, look{100, 30, true, true}},
		{"", [2]uint16{60, 10}, look{60, 10, true, true}},
		{"", [2]uint16{}, look{80, 24, true, true}}, // nobody knows
		{"NO_COLOR=1", [2]uint16{60, 10}, look{60, 10, true, false}},
		{"LC_ALL=C", [2]uint16{60, 10}, look{60, 10, false, true}},
		{"TERM=dumb", [2]uint16{60, 10}, look{}},
		{"CI=true", [2]uint16{60, 10}, look{}},
	} {
		for _, setting := range []string{"TERM=xterm", "CI=", "NO_COLOR=", "LC_ALL=C.UTF-8", test.env} {
			if name, value, is := strings.Cut(setting, "="); is {
				t.Setenv(name, value)
			}
		}
		setSize(t, screen, test.size[0], test.size[1])
		if got := lookOf(terminal); got != test.want {
			t.Errorf("%+v: got %+v", test, got)
		}
	}
	if got := lookOf(&buffer{}); got != (look{}) {
		t.Errorf("no terminal: got %+v", got)
	}
}

// Where standard error is a terminal that cannot be written over, or none, there are log lines alone.
func TestNoLineElsewhere(t *testing.T) {
	for _, env := range [][2]string{{"TERM", "dumb"}, {"CI", "true"}} {
		t.Setenv("TERM", "xterm")
		t.Setenv("CI", "")
		t.Setenv(env[0], env[1])
		screen, terminal := openTerminal(t)
		shown := readScreen(screen)
		s := newShell(t, "")
		s.stderr = terminal
		s.run(exitDone, "run", "--simulate", filepath.Join(root, "samples", "groups.csv"))
		terminal.Write([]byte("the end"))
		await(t, "the end", func() bool { return strings.Contains(shown.String(), "the end") })
		if text := shown.String(); strings.Contains(text, "\x1b") || !strings.Contains(text, "msg=leading") {
			t.Errorf("%s: got %q, want log lines", env, text)
		}
	}
}

// At a terminal a report has colors, and status --watch draws one frame over the other. The text is that of a pipe.
func TestReportAtTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("CI", "")
	t.Setenv("NO_COLOR", "")
	s := newShell(t, "")
	s.run(exitDone, "import", "--import-id", "over", writeRows(t, makeRows(12, 1)))
	s.run(exitDone, "cancel", "over") // so there is nothing to wait for
	screen, terminal := openTerminal(t)
	setSize(t, screen, 200, 24)
	shown := readScreen(screen)
	for _, args := range [][]string{{"status"}, {"status", "over"}, {"status", "--watch"}, {"status", "-o", "json"}} {
		piped := s.run(exitDone, args...).stdout.String()
		before := len(shown.String())
		s.stdout = terminal
		s.run(exitDone, args...)
		s.stdout = nil
		terminal.Write([]byte("the end"))
		await(t, "the end", func() bool { return strings.HasSuffix(shown.String()[before:], "the end") })
		got := strings.TrimSuffix(strings.ReplaceAll(shown.String()[before:], "\r\n", "\n"), "the end")
		if hasColor := strings.Contains(got, "\x1b[33mcancelled\x1b[0m"); hasColor == slices.Contains(args, "json") {
			t.Errorf("%q: got %q", args, got)
		}
		if slices.Contains(args, "--watch") {
			got = strings.NewReplacer("\x1b[H\x1b[2J", "", "\x1b[K", "", "\x1b[J", "").Replace(got)
		}
		age := regexp.MustCompile(`\d+s`)
		if got, want := age.ReplaceAllString(plainText(got), "0s"), age.ReplaceAllString(piped, "0s"); got != want {
			t.Errorf("%q: got\n%q\nwant\n%q", args, got, want)
		}
	}
}

// At a terminal the line goes when nothing is left to do, and says so while NATS is out of reach.
func TestProgressGoes(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("CI", "")
	screen, terminal := openTerminal(t)
	setSize(t, screen, 80, 24)
	shown := readScreen(screen)
	p := &program{console: newConsole(terminal)}
	var pace app.Pace
	totals := app.Totals{Imports: 1, Jobs: 9, Finished: 3}
	p.showProgress(&app.State{Mode: app.Leaderless, Reason: app.NoNATS}, &pace, totals)
	p.showProgress(&app.State{Mode: app.Running, Reason: app.Idle}, &pace, app.Totals{})
	p.console.write("", "the end")
	await(t, "the end", func() bool { return strings.HasSuffix(shown.String(), "the end\r\n") })
	if lines := drawn(shown.String()); len(lines) != 1 || !strings.Contains(lines[0], "3 of 9 jobs  NATS out of reach") {
		t.Errorf("got lines %q", lines)
	}
	if text := shown.String(); !strings.HasSuffix(text, "\r\x1b[Kthe end\r\n") {
		t.Errorf("got %q, want nothing but the end", text)
	}
}

// Data that go to a terminal do not run into the progress line, and do not control the terminal; in a file they are as they are.
func TestDataAtTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("CI", "")
	screen, terminal := openTerminal(t)
	setSize(t, screen, 80, 24)
	shown := readScreen(screen)
	p := &program{console: newConsole(terminal), stdout: terminal}
	p.showProgress(&app.State{Mode: app.Leaderless, Reason: app.NoNATS}, &app.Pace{}, app.Totals{Imports: 1, Jobs: 9})
	fmt.Fprint(p.data(), "lena,Chess,1,bob,\n")
	terminal.Write([]byte("the end"))
	await(t, "the end", func() bool { return strings.HasSuffix(shown.String(), "the end") })
	_, text, _ := strings.Cut(shown.String(), "\x1b[?7h")
	if !regexp.MustCompile(`^\r\x1b\[Klena,Chess,1,bob,\r\n\S+ +0%  .*NATS out of reach.*the end$`).MatchString(text) {
		t.Errorf("got %q, want the data in place of the line, and the line below", text)
	}

	const evil = "a\x1b]0;title\a"
	s := newShell(t, "")
	file := filepath.Join(t.TempDir(), "evil.csv")
	if err := os.WriteFile(file, []byte("from_account,group_name,type,to_account,to_group_id\nlena,"+evil+",1,bob,\nlena,Chess,1,bob,\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"check", "--rejects", "-", file}
	if got := s.run(exitIncomplete, args...).stdout.String(); !strings.Contains(got, evil) {
		t.Errorf("in a file: got %q, want it as it was", got)
	}
	before := len(shown.String())
	s.stdout = terminal
	s.run(exitIncomplete, args...)
	terminal.Write([]byte("the end"))
	await(t, "the end", func() bool { return strings.HasSuffix(shown.String()[before:], "the end") })
	if got := shown.String()[before:]; strings.Contains(got, "\x1b]") || !strings.Contains(got, `lena,a\u001b]0;title\u0007,1,bob`) {
		t.Errorf("at a terminal: got %q", got)
	}
}
