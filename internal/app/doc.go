// Package app is what the commands do, without a terminal: cmd makes configs of its flags, and prints what comes back.
//
//	run FILE   ReadInput ─► Open ─► NewProcess ─► Begin, Rejects.Keep ─► Process.RunImport (Input.Enqueue) ─► ImportStatus, NewRunReport
//	import     ReadInput ─► Open ─► Begin, Rejects.Keep ─► Input.Enqueue
//	--sync     Open ─► ReadNight (lock, snapshot and results of the last night, plan, guards) ─► as above ─► Night.Release
//	check      Check
//	doctor     Doctor, which opens the namespace itself
//	work       OpenWaiting ─► NewProcess ─► Process.Run
//	others     Open ─► FindImport ─► a method of Namespace: Status, WriteResults, Failures, Retry, Pause, CancelImport, …
//	buttons    Monitor.Control: what pause, resume, rate and retry do, for the page
//
// A [Process] is an [Engine] with those who watch it: the progress line, and a [Monitor], which serves metrics, readiness
// and the page (page.go), and does so before there is a process, too. An engine is one process of a
// namespace; it joins queue, lease, governor, worker and API client:
//
//	            standby ◄────────────── lost, handed over ───────────────┐
//	               │ lease taken                                         │
//	               ▼                                                     │
//	lease.Keep ◄─ leader ─► queue.Lead ─► Term ─► worker ─► calls ─► results
//	     │                                          ▲
//	     └── right, promised calls ──► governor ────┘ permits
//
// It stands by until it takes the lease, leads one term, and stands by again when it loses the lease or hands it over. A
// term has a governor, a queue.Term and a worker of its own: what they hold in memory ends with it.
//
// What a process knows about itself, and of the syncs of its API, is its [State]. The engine notes each change there and logs
// it, and whoever needs to know of it watches: see [Engine.Watch]. A night of a sync: see sync.go.
package app
