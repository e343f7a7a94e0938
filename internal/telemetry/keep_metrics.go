package telemetry

// observe gives the metrics of what was kept; a nil keeper kept nothing.
func (k *keeper) observe(o Observation) {
	var stats keepStats
	if k != nil {
		stats = k.Stats()
	}
	o.Count(TracesKept, stats.Kept)
	o.Count(TracesEvicted, stats.Evicted)
	o.Count(SpansTruncated, stats.Truncated)
}
