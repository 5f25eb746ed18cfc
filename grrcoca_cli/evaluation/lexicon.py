"""The words that the clinical proxies look for: short lists, to be read and argued with.

A word that is missing here is a mention that is not counted; a word with two meanings was left out.
"""

LEXICON_VERSION = 2
"""For signatures: goes up with every change that can change a count."""

MODALITIES = {
    "CT": "ct cect ncct hrct cbct mdct ldct cta tomodensitometry"
    r"|comput(?:ed|er|erized|erised)[ -]?(?:axial )?tomogra\w*",
    "MR": "mri mr fmri cmr mrcp mra mrv dwi flair stir t1wi t2wi t1w t2w"
    r"|magnetic[ -]resonance|t[12](?:\*| star)?[ -]?weigh(?:t)?ed",
    "X-ray": "xray radiograph radiography radiographic radiogram roentgenogram opg cxr orthopantomogram "
    "orthopantomograph cephalogram|x[ -]rays?|plain films?",
    "ultrasound": "ultrasound ultrasonography ultrasonographic ultrasonogram sonogram sonography sonographic "
    "echocardiography echocardiogram echocardiographic doppler tte tee eus ivus usg",
    "PET": r"pet|positron[ -]emission[ -]tomogra\w*",
    "scintigraphy": "scintigraphy scintigraphic scintigram spect|bone scans?",
    "angiography": "angiography angiogram angiographic arteriography arteriogram venography venogram dsa cta mra "
    "aortography aortogram angio",
    "mammography": "mammography mammogram mammographic tomosynthesis",
    "fluoroscopy": "fluoroscopy fluoroscopic barium videofluoroscopy esophagogram oesophagogram esophagram",
    "OCT": r"oct|optical coherence tomogra\w*",
}
"""Words, also with an s, then ``|`` and patterns, by the modality they name; one word may name two (``cta``)."""

ULTRASOUND_ONLY_UPPER = "US"
"""Counts in capitals only: ``us`` is a pronoun."""

KINDRED_MODALITIES = (
    frozenset(["X-ray", "fluoroscopy"]),
    frozenset(["angiography", "fluoroscopy"]),
)
"""Pairs that may both name one picture: the one does not contradict the other."""

PLANES = {
    "axial": "transaxial transversal"
    r"|axial(?![ -](?:skelet\w+|spondyl\w+|load\w*|length|traction))"
    r"|transverse(?![ -](?:colo\w+|process\w*|sinus\w*|sigmoid|diameter|fracture|ligament|foram\w+|mesocolon|myelitis"
    r"|venous|dural|arch|carpal|muscle|abdominis|cervical artery|vesical))",
    "coronal": r"|coronal(?![ -](?:suture|pulp\w*|third|restoration|fracture|leakage|balance))",
    "sagittal": "parasagittal"
    r"|(?:mid[ -]?)?sagittal(?![ -](?:sinus\w*|suture|diameter|balance|alignment|split|vertical axis))",
}
"""Not where the word names a part of the body: transverse colon, sagittal sinus, coronal suture."""

VIEWS = {
    "frontal": "pa ap posteroanterior anteroposterior frontal|postero[ -]anterior|antero[ -]posterior",
    "lateral": "lateral",
}
"""Views count beside a word for a radiograph (`VIEW_WORDS`): elsewhere ``lateral`` is a place."""

VIEW_JOINTS = r"(?: ?(?:and|,|/|&) ?(?:pa|ap|lateral|oblique|frontal)){0,2}"
"""A second view in between: ``AP and lateral radiographs``."""

VIEW_WORDS = (
    "(?:(?:chest|skull|spine|cervical|lumbar|thoracic|knee|hip|pelvi[cs]|abdominal|elbow|shoulder|ankle|plain|digital"
    "|upright|standing|supine|fluoroscopic) ){0,2}"
    "(?:views?|projections?|radiographs?|radiograms?|x[ -]?rays?|films?|cephalograms?)"
)

FINDINGS = """
    abnormality abscess adenopathy air-leak aneurysm appendicitis ascites atelectasis bleeding bronchiectasis
    calcification calculus cardiomegaly cavitation cavity collapse collection compression consolidation contusion cyst
    deformity
    deviation dilatation dilation dislocation displacement dissection diverticulum edema effusion embolism embolus
    emphysema encasement enhancement enlargement erosion extravasation fibrosis fistula fracture gallstone granuloma
    hematoma hemorrhage hepatomegaly hernia herniation hydrocephalus hydronephrosis infarct infarction infiltrate
    infiltration inflammation invasion involvement ischemia leak leakage lesion loosening lucency lymphadenopathy
    malformation mass metastasis narrowing necrosis nodule nonunion obstruction occlusion opacity osteolysis
    osteomyelitis osteophyte perforation pneumomediastinum pneumonia pneumoperitoneum pneumothorax polyp
    pseudoaneurysm recurrence reflux regurgitation rupture scoliosis shift shunt splenomegaly stenosis stone stricture
    swelling tear thickening thrombosis thrombus tumor ulcer uptake
"""
"""What is found or not; plurals and British spelling are brought to these forms."""

SPELLINGS = {
    "oedema": "edema",
    "haemorrhage": "hemorrhage",
    "haemorrhages": "hemorrhage",
    "haematoma": "hematoma",
    "haematomas": "hematoma",
    "tumour": "tumor",
    "tumours": "tumor",
    "ischaemia": "ischemia",
    "oesophagus": "esophagus",
    "metastases": "metastasis",
    "metastatic": "metastasis",
    "thrombi": "thrombus",
    "emboli": "embolus",
    "stenoses": "stenosis",
    "calculi": "calculus",
    "diverticula": "diverticulum",
    "masses": "mass",
    "abscesses": "abscess",
    "opacities": "opacity",
    "cavities": "cavity",
    "abnormalities": "abnormality",
    "deformities": "deformity",
    "lymphadenopathies": "lymphadenopathy",
    "pneumothoraces": "pneumothorax",
}

DENIALS = "no not without absence absent negative never neither nor free"
"""Words that deny the findings behind them; ``negative`` only before ``for``, ``free`` only before ``of, from``."""

EVIDENCE = """
    area areas development evidence feature features finding findings focus formation history indication indications
    presence sign signs suggestion suggestive suspicion trace traces
"""
"""A denial reaches across a preposition behind these only: no sign of a mass, but no flow distal to the occlusion."""

PREPOSITIONS = "of to from in on at within into through after during between around near for by"

DENIAL_ENDS = """
    but with although though however except despite because due while whereas which causing suggesting
    showing shows showed demonstrating demonstrates demonstrated revealing reveals revealed
"""
"""Words that a denial does not reach across: CT without contrast showing a mass."""

CONTRAST = "contrast intravenous iv gadolinium medium agent"
"""Behind a denial, what was not given; ``no contrast leak`` denies the leak that stands right behind."""

NO_DENIALS = "change changes sedation fully completely entirely well clearly only readily"
"""Followers that leave a finding standing: ``no change in effusion``, ``not only a mass``."""

HEDGES = "significant marked major relevant other further additional new longer larger"
"""Followers after which nothing is known: ``no significant stenosis`` is neither a stenosis nor none."""

LATE_DENIALS = "absent excluded unseen"
"""Words that deny the finding right before them: ``effusion is absent``."""

SEEN = """
    apparent appreciated demonstrated depicted detected documented evident found identified noted observed present
    recognised recognized seen shown visible visualised visualized
"""
"""Behind ``not`` they deny what stands before: ``a leak was not seen``, but the neck of a sac ``was not angulated``."""

STOP_WORDS = """
    a an and are as at be been being both but by can could did do does for from had has have he her his if in into is it
    its may more most of on or our over shows showing shown seen she side sided sides that the their there these this
    those through to under was were which while who with within
"""

SIZES = " enlarged huge large mild moderate normal severe small"
"""With the stop words, what a side does not belong to."""

POSITIONS = """
    anterior ascending common deep descending distal external inferior internal lateral lower main medial middle
    posterior proximal superficial superior upper
"""
"""They go with the word behind them: the left upper lobe does not contradict a right upper quadrant."""

PAIRED = """
    adrenals arms breasts ears elbows eyes feet femora femurs hands hemispheres hips kidneys knees legs lobes lungs
    orbits ovaries shoulders sides testes thalami thighs tubes ureters ventricles
"""
"""Behind ``both`` they mean left and right."""

NOT_SIDES = (
    r"left (?:in (?:place|situ)|untreated|alone|behind|open|unchanged|untouched|blank)"
    r"|right (?:now|away|before|after)|right[ -]angle[ds]?|(?:left|right)[ -]handed(?:ness)?"
)
"""Where ``left`` is a verb and ``right`` no side, or a patient's hand and not the picture's."""

NUMBER_WORDS = "two three four five six seven eight nine ten eleven twelve"

COUNTED = """
    aneurysm artery calculus catheter clip cyst drain electrode fracture fragment implant lead lesion mass metastasis
    nodule node osteophyte polyp rib screw stent stone thrombus tooth tumor ulcer vein vertebra wire
"""
"""What is counted: two nodules are not three."""

UNIT_WORDS = "mm cm millimeter millimetre centimeter centimetre year month week day hour minute"
"""Behind a number they take it away from the noun: a 2 cm stone is not two stones."""

LABELS = """
    arrow case day fig figure grade group level line no number part patient phase score segment stage type week
"""
"""Before a number they make it a name: level 2 lymph nodes."""

UNITS = {
    "age": r"(?:years?|yrs?)[ -]old|y/?o",
    "year": r"years?(?![ -]old)|yrs?(?![ -]old)",
    "month": r"months?(?![ -]old)",
    "week": r"weeks?|wks?",
    "day": r"days?(?![ -]old)",
    "hour": r"hours?|hrs?",
    "minute": r"minutes?|mins?",
    "percent": r"%|percent|per cent",
    "HU": "hu|hounsfield units?",
    "ml": r"ml|cc|millilit(?:er|re)s?",
    "degree": r"°|degrees?",
}
"""Plain numbers by what they count; values of one family are compared."""
