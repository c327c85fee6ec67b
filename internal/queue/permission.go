package queue

import "groupferry/internal/broker"

// A Need is what a user of NATS has to be allowed to publish for some commands: subjects, with a name in place of each
// wildcard that no stream, import or sync has.
type Need struct {
	Commands string
	Subjects []string
}

// Needs lists what the commands need, as far as it can be tried without doing anything: see [broker.Conn.Denies]. What removes
// something is not among it. deploy/nats/groupferry.conf has all.
func Needs(c *broker.Conn) []Need {
	const one = "groupferry-doctor"
	q := &Queue{conn: c}
	api := func(words string) string { return c.APIPrefix() + words }
	key := func(key string) string { return "$KV." + c.Namespace() + "-control." + key }
	jobs := []string{q.jobsSubject(one), q.checkpointSubject(one), key(importPrefix + one),
		api("STREAM.MSG.GET." + q.jobsStream()), api("STREAM.MSG.GET." + q.controlStream()), api("CONSUMER.CREATE." + q.controlStream() + "." + one)}
	return []Need{
		{"import", jobs},
		{"import --sync", append([]string{
			key(syncPrefix + one + "." + one), key(lockPrefix + one), "$O." + c.Namespace() + "-snapshots.C." + one,
			api("CONSUMER.CREATE." + q.resultsStream() + "." + one), q.resultSubject(one, endKind),
		}, jobs...)},
		{"work", []string{
			q.resultSubject(one, stateKind), q.termSubject(), q.checkpointSubject(one), c.Subject("standby"), c.Subject("announce"),
			c.LeaseSubject(broker.LeaderLease), key(appKey), key(apiKey), key(haltKey), key(importPrefix + one), key(syncPrefix + one + "." + one),
			api("STREAM.MSG.GET.KV_" + c.Namespace() + "-lease"), api("DIRECT.GET." + q.jobsStream()),
		}},
		{"export and verify", []string{c.LeaseSubject(broker.ReaderLease)}},
		{"pause and rate", []string{key(haltKey), key(rateKey)}},
		{"doctor --try-account", []string{key(trialKey), c.LeaseSubject(broker.LeaderLease), key(apiKey)}},
	}
}
