// A dumbbell of TCP flows over one AQM-managed bottleneck in ns-3 3.44, printed as one JSON object.
//
// Senders and receivers have a fast private link each, so that the queue disc in front of the bottleneck is the only
// queue that matters. Everything reported is counted from `warmup_s` on, except `bottleneck_packets` and `wall_s`,
// which cover the whole run and give the speed of the simulator.

#include "ns3/applications-module.h"
#include "ns3/core-module.h"
#include "ns3/internet-module.h"
#include "ns3/network-module.h"
#include "ns3/point-to-point-module.h"
#include "ns3/traffic-control-module.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

using namespace ns3;

namespace
{

// DCTCP as RFC 8257 writes it, where ns-3's own departs from it (`ns3.py` says how, and what that costs).
class RfcDctcp : public TcpDctcp
{
  public:
    static TypeId GetTypeId()
    {
        static TypeId tid = TypeId("RfcDctcp").SetParent<TcpDctcp>().AddConstructor<RfcDctcp>();
        return tid;
    }

    Ptr<TcpCongestionOps> Fork() override
    {
        return CopyObject<RfcDctcp>(this);
    }

    // A mark cuts by alpha / 2, a loss by half.
    uint32_t GetSsThresh(Ptr<const TcpSocketState> tcb, uint32_t bytesInFlight) override
    {
        const bool marked = tcb->m_ecnState == TcpSocketState::ECN_ECE_RCVD &&
                            tcb->m_congState != TcpSocketState::CA_RECOVERY;
        return marked ? TcpDctcp::GetSsThresh(tcb, bytesInFlight) : TcpLinuxReno::GetSsThresh(tcb, bytesInFlight);
    }

    // When the CE state changes, what waits for its ACK is acknowledged first, under the old state.
    void CwndEvent(Ptr<TcpSocketState> tcb, const TcpSocketState::TcpCAEvent_t event) override
    {
        if (event == TcpSocketState::CA_EVENT_DELAYED_ACK || event == TcpSocketState::CA_EVENT_NON_DELAYED_ACK)
        {
            m_ackWaits = event == TcpSocketState::CA_EVENT_DELAYED_ACK;
        }
        const bool ce = event == TcpSocketState::CA_EVENT_ECN_IS_CE;
        if (!ce && event != TcpSocketState::CA_EVENT_ECN_NO_CE)
        {
            return;
        }
        if (ce != m_ce && m_ackWaits)
        {
            tcb->m_sendEmptyPacketCallback(m_ce ? TcpHeader::ACK | TcpHeader::ECE : TcpHeader::ACK);
        }
        m_ce = ce;
        if (ce)
        {
            tcb->m_ecnState = TcpSocketState::ECN_CE_RCVD;
        }
        else if (tcb->m_ecnState == TcpSocketState::ECN_CE_RCVD || tcb->m_ecnState == TcpSocketState::ECN_SENDING_ECE)
        {
            tcb->m_ecnState = TcpSocketState::ECN_IDLE;
        }
    }

  private:
    bool m_ce{false};
    bool m_ackWaits{false};
};

NS_OBJECT_ENSURE_REGISTERED(RfcDctcp);

constexpr uint32_t SEGMENT_BYTES = 1448; // + 32 TCP (timestamps) + 20 IPv4 = 1500 bytes
constexpr uint32_t PACKET_BYTES = 1500;
constexpr uint32_t SOCKET_BUFFER_BYTES = 8'000'000;
constexpr uint16_t PORT = 5000;

// "linuxreno" counts the segments that an ACK covers; "newreno" grows once per ACK, half as fast under delayed ACKs.
const std::map<std::string, std::string> CONGESTION_CONTROLS = {
    {"cubic", "ns3::TcpCubic"},
    {"newreno", "ns3::TcpNewReno"},
    {"linuxreno", "ns3::TcpLinuxReno"},
    {"dctcp", "ns3::TcpDctcp"},
    {"rfcdctcp", "RfcDctcp"},
};

struct Options
{
    double rateMbps{8};
    double rttMs{10};
    double durationS{60};
    double warmupS{10};
    uint32_t seed{1};
    std::string aqm{"pie"};
    uint32_t limitPackets{167};
    std::string flows{"cubic:2,newreno:2,dctcp:1"};
    bool ecn{true};
    double redMinTh{10};
    double redMaxTh{30};
    double redQw{0.002};
    double redMaxP{0.1};
};

struct Flow
{
    std::string cc;
    Ptr<PacketSink> sink;
    uint64_t warmupBytes{0};
};

// What the queue disc had counted, and each sojourn time, since the end of the warm-up.
struct Bottleneck
{
    QueueDisc::Stats warmup;
    std::vector<double> sojournMs;

    void OnSojourn(Time sojourn)
    {
        if (Simulator::Now() >= warmupEnd)
        {
            sojournMs.push_back(sojourn.GetSeconds() * 1e3);
        }
    }

    Time warmupEnd;
};

Options
ParseOptions(int argc, char* argv[])
{
    Options o;
    CommandLine cmd(__FILE__);
    cmd.AddValue("rate_mbps", "bottleneck rate (Mbit/s)", o.rateMbps);
    cmd.AddValue("rtt_ms", "base round-trip time of every flow (ms)", o.rttMs);
    cmd.AddValue("duration_s", "simulated time, warm-up included (s)", o.durationS);
    cmd.AddValue("warmup_s", "time before which nothing is counted (s)", o.warmupS);
    cmd.AddValue("seed", "run number of the random streams", o.seed);
    cmd.AddValue("aqm", "fifo | red | codel | pie", o.aqm);
    cmd.AddValue("limit_packets", "buffer limit (packets)", o.limitPackets);
    cmd.AddValue("flows", "number of flows by congestion control, as cubic:2,newreno:2,dctcp:1", o.flows);
    cmd.AddValue("ecn", "negotiate ECN and let the AQM mark (DCTCP negotiates it in any case)", o.ecn);
    cmd.AddValue("red_min_th", "RED: lower threshold (packets)", o.redMinTh);
    cmd.AddValue("red_max_th", "RED: upper threshold (packets)", o.redMaxTh);
    cmd.AddValue("red_qw", "RED: weight of the average", o.redQw);
    cmd.AddValue("red_max_p", "RED: probability at the upper threshold", o.redMaxP);
    cmd.Parse(argc, argv);
    NS_ABORT_MSG_IF(o.warmupS >= o.durationS, "warmup_s must be less than duration_s");
    return o;
}

std::vector<std::string>
ParseFlows(const std::string& text)
{
    std::vector<std::string> ccs;
    std::istringstream stream(text);
    for (std::string entry; std::getline(stream, entry, ',');)
    {
        const auto colon = entry.find(':');
        NS_ABORT_MSG_IF(colon == std::string::npos, "flows: expected NAME:COUNT, got '" << entry << "'");
        const auto name = entry.substr(0, colon);
        NS_ABORT_MSG_UNLESS(CONGESTION_CONTROLS.contains(name), "flows: unknown congestion control '" << name << "'");
        ccs.insert(ccs.end(), std::stoul(entry.substr(colon + 1)), name);
    }
    NS_ABORT_MSG_IF(ccs.empty(), "flows: none given");
    return ccs;
}

void
SetTcpDefaults(const Options& o)
{
    Config::SetDefault("ns3::TcpSocket::SegmentSize", UintegerValue(SEGMENT_BYTES));
    Config::SetDefault("ns3::TcpSocket::InitialCwnd", UintegerValue(10));
    Config::SetDefault("ns3::TcpSocket::DelAckCount", UintegerValue(2));
    Config::SetDefault("ns3::TcpSocket::DelAckTimeout", TimeValue(MilliSeconds(40)));
    Config::SetDefault("ns3::TcpSocket::SndBufSize", UintegerValue(SOCKET_BUFFER_BYTES));
    Config::SetDefault("ns3::TcpSocket::RcvBufSize", UintegerValue(SOCKET_BUFFER_BYTES));
    Config::SetDefault("ns3::TcpSocketBase::Sack", BooleanValue(true));
    Config::SetDefault("ns3::TcpSocketBase::Timestamp", BooleanValue(true));
    Config::SetDefault("ns3::TcpSocketBase::MinRto", TimeValue(MilliSeconds(200)));
    Config::SetDefault("ns3::TcpSocketBase::UseEcn", StringValue(o.ecn ? "On" : "Off"));
}

// Names the queue disc of an AQM, its attributes set as defaults.
std::string
SetAqmDefaults(const Options& o)
{
    if (o.aqm == "fifo")
    {
        return "ns3::FifoQueueDisc";
    }
    if (o.aqm == "red")
    {
        Config::SetDefault("ns3::RedQueueDisc::MinTh", DoubleValue(o.redMinTh));
        Config::SetDefault("ns3::RedQueueDisc::MaxTh", DoubleValue(o.redMaxTh));
        Config::SetDefault("ns3::RedQueueDisc::QW", DoubleValue(o.redQw));
        Config::SetDefault("ns3::RedQueueDisc::LInterm", DoubleValue(1 / o.redMaxP));
        Config::SetDefault("ns3::RedQueueDisc::Gentle", BooleanValue(true));
        Config::SetDefault("ns3::RedQueueDisc::UseHardDrop", BooleanValue(false));
        // Floyd and Jacobson's spacing of hits: 1 to 1 / p packets apart. ns-3's default is 1 / p to 2 / p.
        Config::SetDefault("ns3::RedQueueDisc::Wait", BooleanValue(false));
        Config::SetDefault("ns3::RedQueueDisc::UseEcn", BooleanValue(o.ecn));
        Config::SetDefault("ns3::RedQueueDisc::MeanPktSize", UintegerValue(PACKET_BYTES));
        Config::SetDefault("ns3::RedQueueDisc::LinkBandwidth", DataRateValue(DataRate(o.rateMbps * 1e6)));
        return "ns3::RedQueueDisc";
    }
    if (o.aqm == "codel")
    {
        Config::SetDefault("ns3::CoDelQueueDisc::Target", StringValue("5ms"));
        Config::SetDefault("ns3::CoDelQueueDisc::Interval", StringValue("100ms"));
        Config::SetDefault("ns3::CoDelQueueDisc::UseEcn", BooleanValue(o.ecn));
        return "ns3::CoDelQueueDisc";
    }
    NS_ABORT_MSG_UNLESS(o.aqm == "pie", "aqm: expected fifo, red, codel or pie, got '" << o.aqm << "'");
    Config::SetDefault("ns3::PieQueueDisc::QueueDelayReference", TimeValue(MilliSeconds(15)));
    Config::SetDefault("ns3::PieQueueDisc::Tupdate", TimeValue(MilliSeconds(15)));
    Config::SetDefault("ns3::PieQueueDisc::A", DoubleValue(0.125));
    Config::SetDefault("ns3::PieQueueDisc::B", DoubleValue(1.25));
    Config::SetDefault("ns3::PieQueueDisc::MaxBurstAllowance", TimeValue(MilliSeconds(150)));
    Config::SetDefault("ns3::PieQueueDisc::UseEcn", BooleanValue(o.ecn));
    Config::SetDefault("ns3::PieQueueDisc::MarkEcnThreshold", DoubleValue(0.1));
    Config::SetDefault("ns3::PieQueueDisc::UseDequeueRateEstimator", BooleanValue(false));
    Config::SetDefault("ns3::PieQueueDisc::UseCapDropAdjustment", BooleanValue(true));
    return "ns3::PieQueueDisc";
}

Ptr<QueueDisc>
InstallQueueDisc(const Options& o, Ptr<NetDevice> device)
{
    TrafficControlHelper helper;
    const std::string limit = std::to_string(o.limitPackets) + "p";
    helper.SetRootQueueDisc(SetAqmDefaults(o), "MaxSize", StringValue(limit));
    return helper.Install(device).Get(0);
}

void
SetCongestionControl(Ptr<Node> node, const std::string& cc)
{
    const auto type = TypeId::LookupByName(CONGESTION_CONTROLS.at(cc));
    node->GetObject<TcpL4Protocol>()->SetAttribute("SocketType", TypeIdValue(type));
}

// Builds the network and its flows; the queue disc stands in front of the returned bottleneck.
Ptr<QueueDisc>
Build(const Options& o, std::vector<Flow>& flows)
{
    const auto ccs = ParseFlows(o.flows);
    const uint32_t n = ccs.size();
    NodeContainer routers(2);
    NodeContainer senders(n);
    NodeContainer receivers(n);
    InternetStackHelper stack;
    stack.Install(NodeContainer(routers, senders, receivers));

    PointToPointHelper core;
    core.SetDeviceAttribute("DataRate", DataRateValue(DataRate(o.rateMbps * 1e6)));
    core.SetChannelAttribute("Delay", TimeValue(Seconds(o.rttMs * 1e-3 / 4)));
    // One packet is the least that ns-3 allows: it waits in the device, so that the sojourn time misses up to one
    // transmission time (besides the transmission itself).
    core.SetQueue("ns3::DropTailQueue", "MaxSize", StringValue("1p"));
    const auto coreDevices = core.Install(routers);
    const auto queueDisc = InstallQueueDisc(o, coreDevices.Get(0));
    // The ACKs must meet neither an AQM nor a full buffer.
    DynamicCast<PointToPointNetDevice>(coreDevices.Get(1))->GetQueue()->SetMaxSize(QueueSize("100000p"));

    PointToPointHelper access;
    access.SetDeviceAttribute("DataRate", DataRateValue(DataRate(std::max(1e9, 20 * o.rateMbps * 1e6))));
    access.SetChannelAttribute("Delay", TimeValue(Seconds(o.rttMs * 1e-3 / 8)));
    access.SetQueue("ns3::DropTailQueue", "MaxSize", StringValue("100000p"));

    TrafficControlHelper noQueueDisc;
    Ipv4AddressHelper address("10.1.0.0", "255.255.255.0");
    address.Assign(coreDevices);
    noQueueDisc.Uninstall(coreDevices.Get(1)); // Assign() gives each bare device an FqCoDel of its own
    auto jitter = CreateObject<UniformRandomVariable>();
    for (uint32_t i = 0; i < n; ++i)
    {
        const auto left = access.Install(senders.Get(i), routers.Get(0));
        const auto right = access.Install(routers.Get(1), receivers.Get(i));
        address.NewNetwork();
        address.Assign(left);
        address.NewNetwork();
        const auto target = address.Assign(right).GetAddress(1);
        noQueueDisc.Uninstall(left);
        noQueueDisc.Uninstall(right);

        // The receiver needs the type as well: DCTCP's echo of CE marks is part of its socket.
        SetCongestionControl(senders.Get(i), ccs[i]);
        SetCongestionControl(receivers.Get(i), ccs[i]);
        BulkSendHelper source("ns3::TcpSocketFactory", InetSocketAddress(target, PORT));
        source.SetAttribute("SendSize", UintegerValue(10 * SEGMENT_BYTES));
        source.Install(senders.Get(i)).Start(Seconds(jitter->GetValue(0, 0.1)));
        PacketSinkHelper sink("ns3::TcpSocketFactory", InetSocketAddress(Ipv4Address::GetAny(), PORT));
        const auto app = sink.Install(receivers.Get(i)).Get(0);
        flows.push_back({ccs[i], DynamicCast<PacketSink>(app)});
    }
    Ipv4GlobalRoutingHelper::PopulateRoutingTables();
    return queueDisc;
}

void
PrintFlows(const std::vector<Flow>& flows, double measuredS)
{
    std::map<std::string, double> classes;
    std::cout << "{\"flows\": [";
    for (size_t i = 0; i < flows.size(); ++i)
    {
        const double mbps = (flows[i].sink->GetTotalRx() - flows[i].warmupBytes) * 8e-6 / measuredS;
        classes[flows[i].cc] += mbps;
        std::cout << (i ? ", " : "") << "{\"cc\": \"" << flows[i].cc << "\", \"goodput_mbps\": " << mbps << "}";
    }
    std::cout << "], \"class_goodput_mbps\": {";
    const char* separator = "";
    for (const auto& [cc, mbps] : classes)
    {
        std::cout << separator << "\"" << cc << "\": " << mbps;
        separator = ", ";
    }
    std::cout << "}";
}

void
PrintBottleneck(const Options& o, Bottleneck& bottleneck, const QueueDisc::Stats& end, double wallS)
{
    const auto& start = bottleneck.warmup;
    auto& delays = bottleneck.sojournMs;
    NS_ABORT_MSG_IF(delays.empty(), "no packet left the queue after the warm-up");
    const double mean = std::accumulate(delays.begin(), delays.end(), 0.0) / delays.size();
    const auto p99 = delays.begin() + static_cast<std::ptrdiff_t>(0.99 * (delays.size() - 1));
    std::nth_element(delays.begin(), p99, delays.end());

    const double offered = end.nTotalReceivedPackets - start.nTotalReceivedPackets;
    const double drops = end.nTotalDroppedPackets - start.nTotalDroppedPackets;
    const double marks = end.nTotalMarkedPackets - start.nTotalMarkedPackets;
    const double sentBits = (end.nTotalSentBytes - start.nTotalSentBytes) * 8.0;
    std::cout << ", \"mean_qdelay_ms\": " << mean << ", \"p99_qdelay_ms\": " << *p99 << ", \"offered_packets\": "
              << offered << ", \"drops\": " << drops << ", \"marks\": " << marks << ", \"drop_rate\": "
              << drops / offered << ", \"mark_rate\": " << marks / offered << ", \"utilisation\": "
              << sentBits / (o.rateMbps * 1e6 * (o.durationS - o.warmupS)) << ", \"bottleneck_packets\": "
              << end.nTotalSentPackets << ", \"wall_s\": " << wallS << "}" << std::endl;
}

} // namespace

int
main(int argc, char* argv[])
{
    const Options o = ParseOptions(argc, argv);
    RngSeedManager::SetSeed(1);
    RngSeedManager::SetRun(o.seed);
    SetTcpDefaults(o);
    std::vector<Flow> flows;
    const auto queueDisc = Build(o, flows);

    Bottleneck bottleneck;
    bottleneck.warmupEnd = Seconds(o.warmupS);
    queueDisc->TraceConnectWithoutContext("SojournTime", MakeCallback(&Bottleneck::OnSojourn, &bottleneck));
    Simulator::Schedule(bottleneck.warmupEnd, [&]() {
        bottleneck.warmup = queueDisc->GetStats();
        for (auto& flow : flows)
        {
            flow.warmupBytes = flow.sink->GetTotalRx();
        }
    });

    Simulator::Stop(Seconds(o.durationS));
    const auto begin = std::chrono::steady_clock::now();
    Simulator::Run();
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;

    std::cout.precision(9);
    PrintFlows(flows, o.durationS - o.warmupS);
    PrintBottleneck(o, bottleneck, queueDisc->GetStats(), wall.count());
    Simulator::Destroy();
    return 0;
}
