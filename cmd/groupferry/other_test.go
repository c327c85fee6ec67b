//go:build !unix

package main

import "testing"

// What tests do on Unix alone.

func (p *process) freeze(t *testing.T) { t.Skip("no signal stops a process here") }
func (p *process) thaw(t *testing.T)   {}

var scaleCommands map[string]func()
