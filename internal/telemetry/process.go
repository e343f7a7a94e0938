package telemetry

import (
	"bytes"
	"os"
	"runtime/metrics"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Figures of the Go runtime, by their names in runtime/metrics.
const (
	runtimeGoroutines  = "/sched/goroutines:goroutines"
	runtimeTotal       = "/memory/classes/total:bytes"
	runtimeReleased    = "/memory/classes/heap/released:bytes"
	runtimeStacks      = "/memory/classes/heap/stacks:bytes"
	runtimeObjects     = "/memory/classes/heap/objects:bytes"
	runtimeLive        = "/gc/heap/live:bytes"
	runtimeAllocated   = "/gc/heap/allocs:bytes"
	runtimeAllocations = "/gc/heap/allocs:objects"
	runtimeGoal        = "/gc/heap/goal:bytes"
	runtimeCycles      = "/gc/cycles/total:gc-cycles"
	runtimeProcessors  = "/sched/gomaxprocs:threads"
)

var runtimeFigures = []string{
	runtimeGoroutines, runtimeTotal, runtimeReleased, runtimeStacks, runtimeObjects, runtimeLive,
	runtimeAllocated, runtimeAllocations, runtimeGoal, runtimeCycles, runtimeProcessors,
}

// ObserveProcess gives the metrics of the process, which began at the given time,
// and of its Go runtime. What the system does not tell is left out.
func ObserveProcess(o Observation, began time.Time) {
	o.Seconds(ProcessUptime, time.Since(began).Seconds())
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) == nil {
		o.Seconds(ProcessCPU, seconds(usage.Utime), AttrCPUMode.String("user"))
		o.Seconds(ProcessCPU, seconds(usage.Stime), AttrCPUMode.String("system"))
	}
	if n, ok := residentMemory(); ok {
		o.Count(ProcessMemory, n)
	}
	if n, ok := openFiles(); ok {
		o.Count(ProcessFiles, n)
	}

	samples := make([]metrics.Sample, len(runtimeFigures))
	for i, name := range runtimeFigures {
		samples[i].Name = name
	}
	metrics.Read(samples)
	figure := make(map[string]uint64, len(samples))
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			figure[s.Name] = s.Value.Uint64()
		}
	}
	o.Count(GoGoroutines, figure[runtimeGoroutines])
	o.Count(GoMemory, figure[runtimeStacks], AttrGoMemoryType.String("stack"))
	o.Count(GoMemory, figure[runtimeTotal]-figure[runtimeReleased]-figure[runtimeStacks], AttrGoMemoryType.String("other"))
	o.Count(GoHeap, figure[runtimeObjects])
	o.Count(GoHeapLive, figure[runtimeLive])
	o.Count(GoAllocated, figure[runtimeAllocated])
	o.Count(GoAllocations, figure[runtimeAllocations])
	o.Count(GoGCGoal, figure[runtimeGoal])
	o.Count(GoGCCycles, figure[runtimeCycles])
	o.Count(GoProcessors, figure[runtimeProcessors])
}

func seconds(t unix.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// residentMemory returns the second field of statm, in bytes (proc_pid_statm(5)).
func residentMemory() (uint64, bool) {
	text, err := os.ReadFile("/proc/self/statm")
	fields := bytes.Fields(text)
	if err != nil || len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	return pages * uint64(os.Getpagesize()), err == nil
}

// openFiles counts the descriptors, without the one that it takes to count them.
func openFiles() (uint64, bool) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(entries) == 0 {
		return 0, false
	}
	return uint64(len(entries) - 1), true
}
