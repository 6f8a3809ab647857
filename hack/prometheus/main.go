// Command prometheus is Prometheus' own scraping, storage, query engine and HTTP API, with the discovery of Kubernetes,
// files and static targets and nothing of rules, alerting, remote storage or the browser's pages: the stock command
// links the SDK of every cloud. Discovery is handed to the scraper within a second (stock: five and five), so that
// a test need not wait ten seconds for a new pod to be seen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	grafana "github.com/grafana/regexp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"

	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	_ "github.com/prometheus/prometheus/discovery/file"
	_ "github.com/prometheus/prometheus/discovery/kubernetes"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/web"
)

const (
	discoveryDelay = time.Second
	retention      = 24 * time.Hour
	lookback       = 5 * time.Minute
	queryTimeout   = time.Minute
	maxSamples     = 50_000_000
)

// localStorage gives the database the shape that the HTTP API asks for.
type localStorage struct{ *tsdb.DB }

func (s localStorage) Stats(label string, limit int) (*tsdb.Stats, error) {
	return s.Head().Stats(label, limit), nil
}

func (localStorage) WALReplayStatus() (tsdb.WALReplayStatus, error) {
	return tsdb.WALReplayStatus{}, nil
}

func main() {
	file := flag.String("config.file", "prometheus.yml", "scrape configuration")
	data := flag.String("storage.tsdb.path", "data", "folder of the database")
	address := flag.String("web.listen-address", "127.0.0.1:9090", "address of the HTTP API")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *file, *data, *address); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file, data, address string) error {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	registry := prometheus.DefaultRegisterer
	cfg, err := config.LoadFile(file, false, logger)
	if err != nil {
		return err
	}
	options := tsdb.DefaultOptions()
	options.RetentionDuration = retention.Milliseconds()
	db, err := tsdb.Open(data, logger, registry, options, nil)
	if err != nil {
		return err
	}
	defer db.Close()
	discoveries, scrapes, err := managers(ctx, cfg, db, registry, logger)
	if err != nil {
		return err
	}
	handler := web.New(logger, webOptions(ctx, address, data, db, scrapes, registry, logger))
	if err := handler.ApplyConfig(cfg); err != nil {
		return err
	}
	listeners, err := handler.Listeners()
	if err != nil {
		return err
	}
	handler.SetReady(web.Ready)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(discoveries.Run)
	group.Go(func() error { return scrapes.Run(discoveries.SyncCh()) })
	group.Go(func() error { return handler.Run(ctx, listeners, "") })
	group.Go(func() error { <-ctx.Done(); scrapes.Stop(); return ctx.Err() })
	return group.Wait()
}

func managers(
	ctx context.Context, cfg *config.Config, db *tsdb.DB, registry prometheus.Registerer, logger *slog.Logger,
) (*discovery.Manager, *scrape.Manager, error) {
	metrics, err := discovery.CreateAndRegisterSDMetrics(registry)
	if err != nil {
		return nil, nil, err
	}
	discoveries := discovery.NewManager(ctx, logger, registry, metrics, discovery.Updatert(discoveryDelay))
	scrapes, err := scrape.NewManager(
		&scrape.Options{DiscoveryReloadInterval: model.Duration(discoveryDelay)}, logger, nil, db, registry,
	)
	if err != nil {
		return nil, nil, err
	}
	if err := scrapes.ApplyConfig(cfg); err != nil {
		return nil, nil, err
	}
	jobs := make(map[string]discovery.Configs)
	for _, job := range cfg.ScrapeConfigs {
		jobs[job.JobName] = job.ServiceDiscoveryConfigs
	}
	return discoveries, scrapes, discoveries.ApplyConfig(jobs)
}

func webOptions(
	ctx context.Context, address, data string, db *tsdb.DB, scrapes *scrape.Manager,
	registry prometheus.Registerer, logger *slog.Logger,
) *web.Options {
	return &web.Options{
		Context:         ctx,
		TSDBDir:         data,
		LocalStorage:    localStorage{db},
		Storage:         db,
		ExemplarStorage: db,
		QueryEngine: promql.NewEngine(promql.EngineOpts{
			Logger: logger, Reg: registry, MaxSamples: maxSamples, Timeout: queryTimeout, LookbackDelta: lookback,
		}),
		LookbackDelta:   lookback,
		ScrapeManager:   scrapes,
		Version:         &web.PrometheusVersion{Version: "3.5.1"},
		Flags:           map[string]string{},
		ListenAddresses: []string{address},
		CORSOrigin:      grafana.MustCompile(regexp.QuoteMeta("*")),
		ReadTimeout:     queryTimeout,
		MaxConnections:  512,
		ExternalURL:     &url.URL{Scheme: "http", Host: address},
		RoutePrefix:     "/",
		Gatherer:        prometheus.DefaultGatherer,
		Registerer:      registry,
	}
}
