package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

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

// At a terminal the first interrupt says what is waited for.
func TestInterruptAtTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("CI", "")
	screen, terminal := openTerminal(t)
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
	rows := makeRows(9, 3)
	sim, url := startSim(t, chatsim.Config{Faults: []chatsim.Fault{{Command: chat.CreateContactGroup, Kind: chatsim.Hang}}})
	s := newShell(t, url)
	s.stderr = terminal
	c := s.start("run", "--timeout", "10m", writeRows(t, rows))
	await(t, "a call", func() bool { return created(sim) > 0 })
	c.signals <- os.Interrupt
	await(t, "what is waited for", func() bool {
		return strings.Contains(shown.String(), "waiting for 1 job in flight; press Ctrl-C again to leave at once")
	})
	c.signals <- os.Interrupt
	c.wait(exitInterrupted)
}
