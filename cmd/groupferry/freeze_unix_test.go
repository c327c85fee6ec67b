//go:build unix

package main

import (
	"syscall"
	"testing"
)

// freeze stops a process where it is, and thaw lets it go on.
func (p *process) freeze(t *testing.T) { p.tell(t, syscall.SIGSTOP) }
func (p *process) thaw(t *testing.T)   { p.tell(t, syscall.SIGCONT) }

func (p *process) tell(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}
