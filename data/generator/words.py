"""Word lists of the generated store: a category tree of 48 leaves, brands, adjectives, sentences.

TREE[department][shelf][leaf] = (product nouns, what they are for). All of it is made up for this store.
"""

Leaf = tuple[tuple[str, ...], tuple[str, ...]]

TREE: dict[str, dict[str, dict[str, Leaf]]] = {
    "Kitchen & Dining": {
        "Baking": {
            "Bread Baking": (
                ("Proofing Basket", "Bread Lame", "Dough Scraper", "Loaf Pan", "Couche Cloth"),
                ("sourdough mornings", "long cold fermentation", "crisp country loaves"),
            ),
            "Cake Decorating": (
                (
                    "Piping Tip Set",
                    "Cake Turntable",
                    "Icing Spatula",
                    "Fondant Roller",
                    "Sprinkle Assortment",
                ),
                ("layer cakes", "birthday cupcakes", "neat buttercream borders"),
            ),
        },
        "Coffee & Tea": {
            "Pour Over Coffee": (
                ("Gooseneck Kettle", "Coffee Dripper", "Paper Filters", "Burr Grinder", "Coffee Scale"),
                ("slow single-cup brewing", "light roasts", "a steady bloom and pour"),
            ),
            "Loose Leaf Tea": (
                ("Tea Infuser", "Glass Teapot", "Matcha Whisk", "Tea Tin", "Tasting Cups"),
                ("green and white teas", "quiet afternoons", "second and third infusions"),
            ),
        },
        "Cookware": {
            "Cast Iron": (
                ("Skillet", "Dutch Oven", "Grill Press", "Chainmail Scrubber", "Handle Cover"),
                ("searing at high heat", "stovetop to oven cooking", "camp stews"),
            ),
            "Knives & Boards": (
                ("Chef Knife", "Paring Knife", "Cutting Board", "Whetstone", "Magnetic Knife Strip"),
                ("clean thin slices", "daily prep work", "keeping an edge for months"),
            ),
        },
    },
    "Garden & Outdoor": {
        "Growing": {
            "Seed Starting": (
                ("Seedling Tray", "Heat Mat", "Peat Pots", "Grow Light", "Humidity Dome"),
                ("early tomatoes", "windowsill seedlings", "strong roots before the last frost"),
            ),
            "Raised Beds": (
                ("Cedar Bed Kit", "Weed Barrier", "Soil Blend", "Trellis Panel", "Drip Line"),
                ("small yards", "deep-rooted vegetables", "less bending and weeding"),
            ),
        },
        "Lawn & Tools": {
            "Pruning": (
                ("Bypass Pruner", "Folding Saw", "Loppers", "Hedge Shears", "Tool Holster"),
                ("fruit trees", "roses and hedges", "green wood up to an inch"),
            ),
            "Watering": (
                ("Soaker Hose", "Hose Nozzle", "Rain Barrel Kit", "Watering Can", "Hose Timer"),
                ("even slow watering", "dry summers", "beds away from the tap"),
            ),
        },
        "Outdoor Living": {
            "Bird Feeding": (
                ("Tube Feeder", "Suet Cage", "Nyjer Seed", "Window Feeder", "Squirrel Baffle"),
                ("finches and chickadees", "winter feeding", "watching from the kitchen window"),
            ),
            "Fire Pits & Grilling": (
                ("Charcoal Chimney", "Grill Brush", "Smoker Chips", "Fire Pit Cover", "Meat Thermometer"),
                ("weekend barbecues", "low and slow smoking", "cool evenings outside"),
            ),
        },
    },
    "Tools & Workshop": {
        "Woodworking": {
            "Hand Planes & Chisels": (
                ("Block Plane", "Bench Chisel", "Honing Guide", "Marking Gauge", "Joiner Mallet"),
                ("dovetail joints", "shaving end grain", "hand-cut furniture"),
            ),
            "Clamps & Gluing": (
                ("Bar Clamp", "Wood Glue", "Corner Clamp", "Glue Brush", "Pipe Clamp Fixture"),
                ("panel glue-ups", "picture frames", "square cabinet corners"),
            ),
        },
        "Electronics Bench": {
            "Soldering": (
                ("Soldering Station", "Solder Wire", "Flux Pen", "Tip Cleaner", "Desoldering Braid"),
                ("through-hole kits", "fine-pitch repairs", "clean shiny joints"),
            ),
            "Test & Measurement": (
                ("Digital Multimeter", "Test Lead Set", "Bench Power Supply", "Logic Probe", "Clamp Meter"),
                ("tracing a short", "battery projects", "checking mains wiring safely"),
            ),
        },
        "Making": {
            "3D Printing": (
                ("PLA Filament", "Brass Nozzle Set", "Build Plate", "Filament Dryer", "Deburring Tool"),
                ("prototypes and fixtures", "miniatures", "a first layer that sticks"),
            ),
            "Fasteners & Storage": (
                ("Hex Bolt Kit", "Parts Organizer", "Lock Washer Assortment", "Thread Locker", "Tool Roll"),
                ("small hardware", "tidy drawers", "repairs on the road"),
            ),
        },
    },
    "Arts & Crafts": {
        "Painting": {
            "Watercolor": (
                ("Watercolor Set", "Round Brush", "Cold Press Pad", "Masking Fluid", "Palette Box"),
                ("loose landscapes", "botanical studies", "soft washes"),
            ),
            "Acrylics & Canvas": (
                ("Acrylic Paint Set", "Stretched Canvas", "Palette Knife", "Tabletop Easel", "Gesso Primer"),
                ("bold abstracts", "layering without waiting", "studio practice"),
            ),
        },
        "Fiber": {
            "Knitting": (
                ("Circular Needles", "Merino Yarn", "Stitch Markers", "Yarn Bowl", "Row Counter"),
                ("first sweaters", "socks on two needles", "cables and lace"),
            ),
            "Quilting": (
                ("Rotary Cutter", "Quilting Ruler", "Cotton Batting", "Fabric Bundle", "Basting Pins"),
                ("straight piecing", "baby quilts", "accurate half-square triangles"),
            ),
        },
        "Paper": {
            "Calligraphy": (
                ("Dip Pen Set", "Iron Gall Ink", "Practice Pad", "Oblique Holder", "Light Pad"),
                ("wedding envelopes", "copperplate drills", "crisp hairlines"),
            ),
            "Bookbinding": (
                ("Bone Folder", "Waxed Thread", "Awl", "Book Cloth", "Binding Press"),
                ("sewn journals", "case bindings", "flat-opening notebooks"),
            ),
        },
    },
    "Pet Supplies": {
        "Dogs": {
            "Dog Training": (
                ("Training Treats", "Long Leash", "Clicker", "Treat Pouch", "Front Clip Harness"),
                ("recall practice", "young dogs", "loose-leash walking"),
            ),
            "Dog Grooming": (
                ("Slicker Brush", "Nail Grinder", "Oatmeal Shampoo", "Drying Towel", "Deshedding Comb"),
                ("thick coats", "sensitive skin", "calm bath days"),
            ),
        },
        "Cats": {
            "Cat Play": (
                ("Feather Wand", "Tunnel", "Catnip Toys", "Scratching Post", "Puzzle Feeder"),
                ("indoor cats", "kittens with energy", "bored afternoons"),
            ),
            "Litter & Care": (
                ("Clumping Litter", "Litter Mat", "Litter Scoop", "Odor Filter", "Water Fountain"),
                ("small apartments", "two or more cats", "less dust and tracking"),
            ),
        },
        "Aquariums": {
            "Planted Tanks": (
                ("Aquarium Soil", "Plant Fertilizer", "Tweezers Set", "LED Tank Light", "CO2 Diffuser"),
                ("aquascaping", "carpeting plants", "shrimp and nano fish"),
            ),
            "Filtration & Water": (
                ("Sponge Filter", "Filter Media", "Water Test Kit", "Gravel Vacuum", "Tank Heater"),
                ("clear water", "cycling a new tank", "weekly changes"),
            ),
        },
    },
    "Sports & Fitness": {
        "Home Gym": {
            "Strength": (
                ("Adjustable Dumbbell", "Resistance Bands", "Lifting Straps", "Pull-Up Bar", "Kettlebell"),
                ("progressive overload", "garage gyms", "short full-body sessions"),
            ),
            "Yoga & Recovery": (
                ("Yoga Mat", "Foam Roller", "Cork Block", "Massage Ball", "Stretching Strap"),
                ("tight hips", "morning flows", "sore calves"),
            ),
        },
        "Cycling": {
            "Bike Maintenance": (
                ("Chain Lube", "Torque Wrench", "Tire Levers", "Repair Stand", "Chain Checker"),
                ("quiet drivetrains", "roadside fixes", "winter commuting"),
            ),
            "Bike Accessories": (
                ("Handlebar Bag", "Rear Light", "Bottle Cage", "Bar Tape", "Phone Mount"),
                ("long gravel rides", "riding after dark", "bikepacking weekends"),
            ),
        },
        "Trail": {
            "Hiking": (
                ("Trekking Poles", "Daypack", "Water Filter", "Merino Socks", "Headlamp"),
                ("steep descents", "overnight trips", "wet spring trails"),
            ),
            "Climbing": (
                ("Chalk Bag", "Belay Device", "Quickdraw Set", "Climbing Tape", "Hangboard"),
                ("gym sessions", "sport routes", "finger strength"),
            ),
        },
    },
    "Office & Study": {
        "Writing": {
            "Fountain Pens": (
                ("Fountain Pen", "Bottled Ink", "Ink Converter", "Pen Case", "Cleaning Bulb"),
                ("daily notes", "smooth paper", "collectors on a budget"),
            ),
            "Notebooks & Planners": (
                ("Dot Grid Notebook", "Weekly Planner", "Page Flags", "Refill Inserts", "Pen Loop"),
                ("bullet journaling", "meeting notes", "semester planning"),
            ),
        },
        "Desk": {
            "Ergonomics": (
                ("Monitor Arm", "Footrest", "Laptop Stand", "Wrist Rest", "Seat Cushion"),
                ("long desk days", "neck strain", "small home offices"),
            ),
            "Cable & Power": (
                ("Cable Tray", "USB Hub", "Surge Protector", "Cable Sleeves", "Charging Dock"),
                ("clean desks", "too many chargers", "standing desks"),
            ),
        },
        "Study": {
            "Flash Cards & Languages": (
                ("Vocabulary Cards", "Grammar Workbook", "Index Card Box", "Graded Reader", "Phrase Guide"),
                ("spaced repetition", "beginner Spanish", "exam season"),
            ),
            "Maths & Science Kits": (
                ("Microscope Slides", "Chemistry Kit", "Graphing Calculator", "Crystal Kit", "Circuit Kit"),
                ("curious ten-year-olds", "homeschool labs", "science fairs"),
            ),
        },
    },
    "Home Care": {
        "Cleaning": {
            "Laundry": (
                ("Enzyme Detergent", "Wool Dryer Balls", "Stain Stick", "Mesh Wash Bags", "Drying Rack"),
                ("cold washes", "grass and wine stains", "delicate fabrics"),
            ),
            "Floors": (
                ("Flat Mop", "Mop Pad Refills", "Floor Concentrate", "Vacuum Bags", "Dust Pan Set"),
                ("hardwood and tile", "homes with pets", "a quick daily pass"),
            ),
        },
        "Air & Light": {
            "Air Quality": (
                ("Air Purifier", "Replacement Filter", "Humidifier", "Hygrometer", "Wick Filter"),
                ("allergy season", "dry winter air", "bedrooms and nurseries"),
            ),
            "Lighting": (
                ("LED Bulb Pack", "Dimmer Switch", "Under Cabinet Light", "Motion Sensor", "Desk Lamp"),
                ("warm evenings", "dark hallways", "lower power bills"),
            ),
        },
        "Repair": {
            "Plumbing Fixes": (
                ("Faucet Aerator", "Drain Snake", "Thread Tape", "Toilet Flapper", "Shower Head"),
                ("slow drains", "dripping taps", "old fittings"),
            ),
            "Walls & Paint": (
                ("Paint Roller Kit", "Spackle", "Painter Tape", "Sanding Sponge", "Caulk Gun"),
                ("sharp edges", "nail holes", "one-weekend makeovers"),
            ),
        },
    },
}

BRANDS = (
    "Harlow", "Northfold", "Copperline", "Tamsin", "Brightwell", "Oakhurst", "Velo Nord", "Kestrel", "Millbrook",
    "Fennimore", "Ashgrove", "Juniper Lane", "Stonebridge", "Lumenhaus", "Pinecrest", "Wrenfield", "Calder & Co",
    "Saltmarsh", "Bluehaven", "Thornbury", "Marlowe", "Eastwick", "Granary Row", "Hollis", "Ironvale", "Quillon",
    "Redmoor", "Silverbirch", "Tidewater", "Umber", "Vantage Peak", "Willowmere", "Yarrow", "Zephyr", "Alder & Finch",
    "Beacon Hill", "Cinderford", "Drumlin", "Elmstead", "Foxglove", "Glasswing", "Heron Bay", "Inkwell", "Larkspur",
    "Moorgate", "Nettle & Rye", "Orchard Street", "Paragon", "Ridgeway", "Summit Trail", "Trillium", "Underhill",
    "Verity", "Westerly", "Aldous", "Birchwood", "Cobalt Works", "Dovetail", "Ember", "Farrow",
)  # fmt: skip
ADJECTIVES = (
    "Classic", "Compact", "Premium", "Everyday", "Professional", "Deluxe", "Essential", "Select", "Signature", "Original",
    "Improved", "Advanced", "Basic", "Trusted", "Studio", "Master", "Standard", "Heritage", "Modern", "Simple",
)  # fmt: skip
MATERIALS = {
    "Kitchen & Dining": ("Stainless Steel", "Beech Wood", "Silicone", "Ceramic", "Linen"),
    "Garden & Outdoor": ("Cedar", "Galvanized Steel", "Recycled Plastic", "Bamboo", "Powder-Coated"),
    "Tools & Workshop": ("Carbon Steel", "Brass", "Hardened Steel", "Nylon", "Cast Aluminum"),
    "Arts & Crafts": ("Maple Wood", "Cotton", "Walnut", "Archival", "Brass"),
    "Pet Supplies": ("Natural Rubber", "Bamboo", "Soft Cotton", "Recycled", "Stainless Steel"),
    "Sports & Fitness": ("Aluminum", "Natural Cork", "Ripstop Nylon", "Merino", "Carbon Fiber"),
    "Office & Study": ("Walnut", "Aluminum", "Recycled Paper", "Felt", "Brass"),
    "Home Care": ("Microfiber", "Stainless Steel", "Bamboo", "Plant-Based", "Recycled Plastic"),
}
COLORS = (
    "Black",
    "Charcoal",
    "Sage Green",
    "Navy",
    "Natural",
    "Brick Red",
    "White",
    "Slate",
    "Mustard",
    "Sky Blue",
)
SIZES = (
    "Set of 2", "Pack of 3", "Twin Pack", "Value Pack", "Single", "Medium", "Large", "Small", "Gift Set", "Travel Size",
)  # fmt: skip
SERIES = (
    "Aurora", "Basin", "Cedar", "Delta", "Echo", "Fjord", "Grove", "Harbor", "Isle", "Juno", "Keel", "Lyra", "Mesa",
    "Nova", "Onyx", "Prairie", "Quarry", "River", "Sierra", "Tundra", "Union", "Vesper", "Willow", "Yukon",
)  # fmt: skip
OPENINGS = (
    "Made for {use}.",
    "{adjective} by design and ready for {use}.",
    "We designed this {noun} with {use} in mind.",
    "If you care about {use}, this {noun} belongs within reach.",
    "The {brand} {noun} takes the guesswork out of {use}.",
)
DETAILS = (
    "The {material} parts are made to stay true through years of use.",
    "The {color} finish hides marks and wipes clean.",
    "Rounded edges sit comfortably in the hand.",
    "It stores flat and weighs almost nothing.",
    "Every piece is checked before it leaves our workshop.",
    "Instructions and a small care guide are in the box.",
    "Sized for beginners, sturdy enough for professionals.",
    "No batteries, no app, nothing to set up.",
    "Works equally well for {other_use}.",
    "Backed by the two-year {brand} guarantee.",
)
REVIEW_OPENINGS = (
    "Does what it should.", "Better than I expected.", "My third one from this maker.", "Arrived quickly and well packed.",
    "Bought this for my sister.", "I use it almost every day.", "Not bad for the price.", "A small but real improvement.",
    "I had doubts at first.", "Replaces an old one that finally broke.", "Sturdy and simple.", "Looks nicer in person.",
)  # fmt: skip
REVIEW_DETAILS = (
    "The size is right and it cleans up easily.", "One corner was scratched, but it works.",
    "I wish it came in more colors, otherwise no complaints.", "It took a week to get used to it and now I like it.",
    "Customer service answered within a day when I had a question.", "It feels heavier than the picture suggests.",
    "After two months it still looks new.", "My old one lasted ten years, let us see about this.",
    'The instructions say "do not overtighten" and they mean it.', "Would buy again & recommend to friends.",
    "Four stars because the box was damaged, the product is fine.", "It pairs well with the rest of the set.",
)  # fmt: skip
SUMMARIES = (
    "Five Stars", "Good value", "Works well", "As described", "Happy with it", "Solid choice", "Okay", "Nice quality",
    "Does the job", "Would buy again", "Four Stars", "Great little thing",
)  # fmt: skip
