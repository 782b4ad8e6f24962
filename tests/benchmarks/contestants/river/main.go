// The benchmark's program for River; see contestant.py for the verbs.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"golang.org/x/sys/unix"
)

var (
	stamp = os.Getenv("BENCH_STAMP")

	// ran and first are what `work` reports; latencies (in µs) are kept for BENCH_STAMP=latency only.
	ran, first     atomic.Int64
	latencies      = []int64{}
	latenciesGuard sync.Mutex

	output sync.Mutex
)

type facts map[string]any

func say(f facts) {
	line, err := json.Marshal(f)
	check(err)
	output.Lock()
	defer output.Unlock()
	_, err = os.Stdout.Write(append(line, '\n'))
	check(err)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func monotonic() int64 {
	var now unix.Timespec
	check(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return now.Nano()
}

type benchArgs struct {
	N       int     `json:"n"`
	SleepMS float64 `json:"sleep_ms"`
	At      int64   `json:"at"`
}

func (benchArgs) Kind() string { return "bench" }

type benchWorker struct {
	river.WorkerDefaults[benchArgs]
}

func (*benchWorker) Work(ctx context.Context, job *river.Job[benchArgs]) error {
	start := monotonic()
	if job.Args.SleepMS > 0 {
		select {
		case <-time.After(time.Duration(job.Args.SleepMS * float64(time.Millisecond))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch stamp {
	case "each":
		say(facts{"start": start, "n": job.Args.N})
	case "latency":
		latenciesGuard.Lock()
		latencies = append(latencies, (start-job.Args.At)/1000)
		latenciesGuard.Unlock()
	}
	first.CompareAndSwap(0, start)
	ran.Add(1)
	return nil
}

func pool(ctx context.Context) *pgxpool.Pool {
	pool, err := pgxpool.New(ctx, os.Getenv("BENCH_DSN"))
	check(err)
	check(pool.Ping(ctx))
	return pool
}

func client(pool *pgxpool.Pool, working bool) *river.Client[pgx.Tx] {
	workers := river.NewWorkers()
	river.AddWorker(workers, &benchWorker{})
	config := &river.Config{
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Workers: workers,
	}
	slots := 0
	switch setting := os.Getenv("BENCH_SETTING"); setting {
	case "default":
		slots = 100
	case "1000 workers", "river bench":
		config.FetchCooldown = 2 * time.Millisecond
		config.FetchPollInterval = 20 * time.Millisecond
		slots = 1000
		if setting == "river bench" {
			slots = 2000
		}
	default:
		check(fmt.Errorf("unknown setting %q", setting))
	}
	if working {
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: slots}}
	}
	made, err := river.NewClient(riverpgxv5.New(pool), config)
	check(err)
	return made
}

func prepare(ctx context.Context) {
	pool := pool(ctx)
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	check(err)
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	check(err)
}

func insertMany(ctx context.Context, client *river.Client[pgx.Tx], from, count int, sleepMS float64) {
	jobs := make([]river.InsertManyParams, count)
	at := monotonic()
	for i := range jobs {
		jobs[i].Args = benchArgs{N: from + i, SleepMS: sleepMS, At: at}
	}
	_, err := client.InsertManyFast(ctx, jobs)
	check(err)
}

func insertOne(ctx context.Context, client *river.Client[pgx.Tx], n int, sleepMS float64) {
	_, err := client.Insert(ctx, benchArgs{N: n, SleepMS: sleepMS, At: monotonic()}, nil)
	check(err)
}

func enqueue(ctx context.Context, mode string, count int, sleepMS float64) {
	pool := pool(ctx)
	defer pool.Close()
	client := client(pool, false)
	begin := time.Now()
	if mode == "bulk" {
		insertMany(ctx, client, 0, count, sleepMS)
	} else {
		for n := range count {
			insertOne(ctx, client, n, sleepMS)
		}
	}
	say(facts{"enqueued": count, "seconds": time.Since(begin).Seconds()})
}

func produce(ctx context.Context) {
	pool := pool(ctx)
	defer pool.Close()
	client := client(pool, false)
	say(facts{"ready": monotonic()})
	n := 0
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		count, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
		check(err)
		if count == 1 {
			insertOne(ctx, client, n, 0)
		} else {
			insertMany(ctx, client, n, count, 0)
		}
		say(facts{"committed": monotonic()})
		n += count
	}
}

func work(ctx context.Context) {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()

	pool := pool(ctx)
	defer pool.Close()
	client := client(pool, true)
	check(client.Start(ctx))
	say(facts{"ready": monotonic()})

	told := int64(0)
	report := func() {
		if now := ran.Load(); now != told {
			told = now
			say(facts{"ran": now, "first": first.Load()})
		}
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for working := true; working; {
		select {
		case <-ticker.C:
			report()
		case <-ended:
			working = false
		case <-terminated:
			working = false
		}
	}
	check(client.Stop(ctx))
	report()
	if stamp == "latency" {
		say(facts{"latencies_us": latencies})
	}
	say(facts{"stopped": monotonic()})
}

func main() {
	verb, arguments := "", []string{}
	if len(os.Args) > 1 {
		verb, arguments = os.Args[1], os.Args[2:]
	}
	ctx := context.Background()
	switch {
	case verb == "prepare":
		prepare(ctx)
	case verb == "enqueue" && len(arguments) == 3:
		count, err := strconv.Atoi(arguments[1])
		check(err)
		sleepMS, err := strconv.ParseFloat(arguments[2], 64)
		check(err)
		enqueue(ctx, arguments[0], count, sleepMS)
	case verb == "produce":
		produce(ctx)
	case verb == "work":
		work(ctx)
	default:
		check(fmt.Errorf("unknown verb or arguments: %q", os.Args[1:]))
	}
}
